"""The pictures of the report, drawn by matplotlib as SVG; several runs are lines of several colors in each."""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.monitoring.columns import CHECKPOINT, ERROR, GUARD, STEP, TRAIN, VALIDATION
from training.report.history import History, Position, newest_loads, thinned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Text stays text, is never read as a formula, and the same runs give the same file.
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False, "font.size": 9, "axes.titlesize": 10,
    "axes.titleweight": "bold", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.25, "font.family": "sans-serif",
}  # fmt: skip
PALETTE = (
    "#1f77b4", "#d95f02", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#7f7f7f", "#bcbd22", "#d62728"
)  # fmt: skip
WIDTH = 4.1  # inches: three pictures fit beside one another
PANELS_IN_A_ROW = 6


@dataclass(frozen=True)
class Chart:
    """A quantity over the course of the runs.

    Attributes:
        column: with ``of_layers`` the statistic before ``/<layer>`` or ``/<domain>``.
        title: with the unit.
        factor: of the values.
        log: whether y is logarithmic.
        sparse: whether only sparse models have it.
        of_layers: whether each sparse layer, or domain, has a panel.
        marks: whether checkpoints and the guard's decisions are marked.
        validation: whether evaluations are drawn over training.
        split: whose rows have the column.
    """

    column: str
    title: str
    factor: float = 1.0
    log: bool = False
    sparse: bool = False
    of_layers: bool = False
    marks: bool = False
    validation: bool = False
    split: str = TRAIN


CHARTS = (
    Chart("cross_entropy", "Cross-entropy, nats per target", marks=True, validation=True),
    Chart("score", "Mean score of all tasks, %", split=VALIDATION),
    Chart("grad_norm", "Gradient norm before clipping", log=True, marks=True),
    Chart("load_balance_loss", "Load balance loss L_B (1 is uniform)", sparse=True, validation=True),
    Chart("router_z_loss", "Router z-loss L_Z, nats²", log=True, sparse=True, validation=True),
    Chart("dropped_fraction", "Tokens that no expert processes, %", factor=100, sparse=True, validation=True),
    Chart("learning_rate", "Learning rate"),
    Chart("tokens_per_second", "Throughput, tokens/s"),
    Chart("mfu", "Model FLOPs utilization, %", factor=100),
    Chart("peak_memory_bytes", "Peak memory, GiB", factor=2**-30),
)
LAYER_CHARTS = (
    Chart(
        "cross_entropy", "Validation cross-entropy of each domain, nats per target", of_layers=True, split=VALIDATION
    ),
    Chart("score", "Score of each task, %", of_layers=True, split=VALIDATION),
    Chart("router_entropy", "Router entropy, nats", sparse=True, of_layers=True),
    Chart("expert_load_cv", "Coefficient of variation of expert load", sparse=True, of_layers=True),
    Chart("dead_experts", "Dead experts (load below 1 % of the mean)", sparse=True, of_layers=True),
    Chart("dropped_fraction", "Tokens that no expert of the layer processes, %", 100, sparse=True, of_layers=True),
)


def color(index: int) -> str:
    """Return the color of a run on the page."""
    palette = (
        "#1f77b4",
        "#d95f02",
        "#2ca02c",
        "#9467bd",
        "#8c564b",
        "#e377c2",
        "#17becf",
        "#7f7f7f",
        "#bcbd22",
        "#d62728",
    )
    return palette[index % len(palette)]


def is_sparse(history: History) -> bool:
    """Return whether a run's model has experts, as far as its configuration tells."""
    return bool(history.config.get("model", {}).get("num_experts", 1))


def lacking(chart: Chart, histories: Sequence[History]) -> list[History]:
    """Return the runs that should have the quantity and have no value of it."""
    found = []
    for history in histories:
        keys = history.layers(chart.column) if chart.of_layers else history.columns() & {chart.column}
        if not keys and chart.split == TRAIN and (is_sparse(history) or not chart.sparse):
            found.append(history)
    return found


def draw(chart: Chart, histories: Sequence[History], positions: Sequence[Position], axis: str) -> str | None:
    """Return the SVG of a chart, None if no run has anything to show.

    Args:
        chart: what to draw.
        histories: the runs.
        positions: of each, where its steps lie.
        axis: label of x.
    """
    shown = [
        (index, history, position)
        for index, (history, position) in enumerate(zip(histories, positions, strict=True))
        if is_sparse(history) or not chart.sparse
    ]
    if not chart.of_layers:
        figure = _figure(WIDTH, 2.7)
        axes = figure.subplots()
        drawn = sum([_lines(axes, chart, chart.column, *run) for run in shown])
        _finish(axes, chart, chart.title, axis)
        return _svg(figure) if drawn else None
    layers = list(
        dict.fromkeys(layer for _, history, _ in shown for layer in history.layers(chart.column, chart.split))
    )
    if not layers:
        return None
    rows, columns = math.ceil(len(layers) / PANELS_IN_A_ROW), min(len(layers), PANELS_IN_A_ROW)
    figure = _figure(max(WIDTH, WIDTH / 2 * columns), 2.0 * rows + 0.5, top=0.55)
    figure.suptitle(chart.title, fontsize=10, fontweight="bold")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for panel, layer in zip(panels, layers, strict=False):
        for run in shown:
            _lines(panel, chart, f"{chart.column}/{layer}", *run)
        _finish(panel, chart, layer, axis)
    for panel in panels[len(layers) :]:
        panel.set_visible(False)
    return _svg(figure)


def draw_loads(history: History) -> str | None:
    """Return the heatmap of the newest load, layers x experts; None if the run has none."""
    from matplotlib.ticker import MaxNLocator

    loads = newest_loads(history)
    if not loads:
        return None
    experts = max(map(len, loads.values()))
    relative = [[share * len(load) for share in load] + [math.nan] * (experts - len(load)) for load in loads.values()]
    figure = _figure(min(12.0, max(WIDTH, 1.8 + 0.3 * experts)), max(1.7, 0.9 + 0.25 * len(loads)), left=0.85, top=0.15)
    axes = figure.subplots()
    image = axes.imshow(relative, aspect="auto", cmap="RdBu_r", vmin=0, vmax=2, interpolation="nearest")
    axes.set_yticks(range(len(loads)), list(loads))
    axes.set_xlabel("expert")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=False)
    if experts <= 16:
        for row, values in enumerate(relative):
            for column, value in enumerate(values):
                if math.isfinite(value):
                    ink = "white" if abs(value - 1) > 0.7 else "black"
                    axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    figure.colorbar(image, ax=axes, label="load / mean", extend="max")
    return _svg(figure)


def _lines(axes: Any, chart: Chart, column: str, index: int, history: History, position: Position) -> bool:
    """Draw a run's lines; return whether there was anything to draw."""
    xs, ys = thinned(*history.points(column, chart.split, position))
    shade = color(index)
    single = "o" if len(xs) == 1 else ""
    axes.plot(
        xs,
        [y * chart.factor for y in ys],
        color=shade,
        linewidth=1.1,
        marker=single,
        alpha=0.55 if chart.validation else 0.95,
    )
    over: tuple[list[float], list[float]] = ([], [])
    if chart.validation:
        over = history.points(column, VALIDATION, position)
        axes.plot(over[0], [y * chart.factor for y in over[1]], color=shade, linewidth=1.6, marker="o", markersize=3.5)
    if chart.marks:
        _mark(axes, history, position, shade)
    return bool(xs or over[0])


def _mark(axes: Any, history: History, position: Position, shade: str) -> None:
    """Mark published checkpoints on the x-axis, and the guard's decisions by vertical lines."""
    saved = [position(row[STEP]) for row in history.of(CHECKPOINT) if ERROR not in row]
    bottom = axes.get_xaxis_transform()
    axes.plot(saved, [0.02] * len(saved), "^", color=shade, markersize=4, transform=bottom, clip_on=False)
    for x in {position(row[STEP]) for row in history.of(GUARD)}:
        axes.axvline(x, color=shade, linewidth=0.9, linestyle=":")


def _finish(axes: Any, chart: Chart, title: str, axis: str) -> None:
    axes.set_title(
        title, loc="left", fontweight="normal" if chart.of_layers else "bold", fontsize=9 if chart.of_layers else 10
    )
    axes.set_xlabel(axis)
    values = [y for line in axes.lines if line.get_transform() == axes.transData for y in line.get_ydata()]
    if chart.log and values and 0 < 20 * min(values) < max(values):
        from matplotlib.ticker import NullFormatter, StrMethodFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _figure(width: float, height: float, left: float = 0.55, top: float = 0.3) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    # Margins in inches: a layout engine would take most of the time that the page takes.
    figure.subplots_adjust(left / width, 0.45 / height, 1 - 0.1 / width, 1 - top / height, 0.12, 0.6)
    return figure


def _svg(figure: "Figure") -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


@contextmanager
def style() -> Iterator[None]:
    """Within it pictures have the look of the page."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        yield
