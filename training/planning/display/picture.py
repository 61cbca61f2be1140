"""A plan's memory as a picture: a bar for each time of a step, stacked by part, against the card."""

from pathlib import Path
from typing import TYPE_CHECKING

from common.files import naming
from training.planning.display.table import PARTS
from training.planning.display.units import GIB
from training.planning.plan import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {
    "weights": "#1f77b4", "master": "#6baed6", "optimizer": "#9467bd", "gathered": "#17becf", "buckets": "#8c564b",
    "gradients": "#d95f02", "reduction": "#fdae6b", "copies": "#e377c2", "activations": "#2ca02c",
    "reserved": "#7f7f7f",
}  # fmt: skip
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "font.family": "sans-serif"}
DPI = 150


def draw(plan: Plan, title: str) -> "Figure":
    """Return the picture; imports matplotlib."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(7.5, 3.2), layout="constrained")
        axes = figure.subplots()
        for row, moment in enumerate(plan.moments):
            left = 0.0
            for part, color in COLORS.items():
                size = (plan.reserved if part == "reserved" else moment.parts.get(part, 0)) / GIB
                if size:
                    axes.barh(row, size, left=left, color=color, height=0.6, label=PARTS[part])
                    left += size
            axes.text(left, row, f" {left:,.1f}", va="center")
        memory = plan.card.memory / GIB
        axes.axvline(memory, color="#d62728", linestyle="--", linewidth=1.2)
        label = f"{plan.card.name}: {memory:,.1f} GiB "
        axes.text(memory, -0.5, label, color="#d62728", ha="right", va="center")
        axes.set_yticks(range(len(plan.moments)), [moment.name for moment in plan.moments])
        axes.set_ylim(len(plan.moments) - 0.5, -0.7)
        axes.set_xlim(0, 1.15 * max(memory, plan.needed / GIB))
        axes.set_xlabel("GiB on a GPU")
        axes.set_title(title, loc="left", fontweight="bold")
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def write_picture(plan: Plan, title: str, file: Path) -> None:
    """Write the picture in the format of the file's ending. Raises OSError."""
    with naming(file):
        draw(plan, title).savefig(file, dpi=DPI)
