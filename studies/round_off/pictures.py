"""The pictures of the round-off study, as PNG files: errors beside their laws, and training from large logits."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch

from studies.round_off.laws import worst_error_of_exp
from studies.round_off.measure import LAW, precision_of
from studies.round_off.plan import Start
from studies.round_off.recovery import start_of
from studies.round_off.rows import Row

matplotlib.use("Agg")
from matplotlib import pyplot

PRECISIONS = ("softmax_input", "operands", "router", "selective", "everything", "fp32")
LOGIT = "largest absolute logit"


def plot_errors(random: Sequence[Row], trained: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Plot the error of the exponential, errors and flips over the logits' size, over an offset, and of trained models.

    Args:
        random: rows of ``measure_layer`` of random tokens, of all draws.
        trained: rows of ``measure_run`` by run; may be empty.
        path: of the file.
    """
    figure, axes = pyplot.subplots(2, 3, figsize=(17, 10), layout="constrained")
    _exponential(axes[0, 0])
    scaled = [row for row in random if row["offset"] == 0]
    for axis, key, title in (
        (axes[0, 1], "gate_error", "mean error of the gates"),
        (axes[0, 2], "flips_second", "share of tokens whose second expert flips"),
        (axes[1, 0], "output_error", "relative error of the layer's output"),
    ):
        for number, name in enumerate(PRECISIONS):
            _line(axis, scaled, name, "max_abs_logit", key, color=f"C{number}", label=precision_of(name).title)
        _line(axis, scaled, LAW, "max_abs_logit", key, color="black", linestyle="--", label="law, softmax's input")
        _decorate(axis, f"{LOGIT}, router weights x factor", title)
    axes[0, 1].legend(fontsize="x-small")
    shifted = [row for row in random if row["offset"] > 0]
    for number, (key, title) in enumerate((("gate_error", "gates"), ("flips_first", "first expert flips"))):
        _line(axes[1, 1], shifted, "softmax_input", "offset", key, color=f"C{number}", label=title)
        _line(axes[1, 1], shifted, LAW, "offset", key, color=f"C{number}", linestyle="--", label=f"{title}, law")
    _decorate(axes[1, 1], "number added to all logits", "error with the softmax's input in bf16")
    axes[1, 1].legend(fontsize="x-small")
    for number, (run, rows) in enumerate(trained.items()):
        of = [r for r in rows if "layer" in r and r["factor"] == 1 and not r["offset"] and r["precision"] == "router"]
        axes[1, 2].plot(
            [r["logsumexp_square"] for r in of], [r["gate_error"] for r in of], "o", color=f"C{number}", label=run
        )
    _decorate(axes[1, 2], "mean logsumexp² of a trained router", "mean error of its gates, the router in bf16")
    if trained:
        axes[1, 2].legend(fontsize="x-small")
    _save(figure, path)


def plot_recovery(rows: Sequence[Mapping[str, Any]], bar: float | None, path: Path) -> None:
    """Plot L_Z and the largest logit over the steps, and the final quality of every run.

    Args:
        rows: of ``recovery.to_rows``.
        bar: cross-entropy that counts as the quality of small logits.
        path: of the file.
    """
    figure, axes = pyplot.subplots(1, 3, figsize=(18, 5.5), layout="constrained")
    starts: list[Start] = list(dict.fromkeys(start_of(dict(row)) for row in rows))
    factors = sorted({start.factor for start in starts})
    for row in rows:
        start, first = start_of(dict(row)), row["seed"] == min(r["seed"] for r in rows)
        style = {"color": f"C{factors.index(start.factor)}", "linestyle": _dashes(start), "linewidth": 0.9}
        for axis, key in zip(axes, ("router_z_loss", "max_router_logit"), strict=False):
            points = [(point["step"], point[key]) for point in row["curve"] if point[key] > 0]
            if points:
                axis.plot(*zip(*points, strict=True), label=start.title if first else None, **style)
    for axis, title in zip(axes, ("mean (logsumexp of router logits)²", "largest router logit"), strict=False):
        _decorate(axis, "step", title, log_x=False)
    for place, start in enumerate(starts):
        values = [r["cross_entropy"] for r in rows if start_of(dict(r)) == start and r["cross_entropy"] is not None]
        marker = {"color": f"C{factors.index(start.factor)}", "marker": "o" if start.z_loss else "x"}
        axes[2].plot([place] * len(values), values, linestyle="", **marker)
    if bar is not None:
        axes[2].axhline(bar, color="black", linewidth=0.8, label="quality of small logits + 2 standard deviations")
        axes[2].legend(fontsize="x-small")
    axes[2].set_xticks(range(len(starts)), [start.title for start in starts], rotation=30, ha="right", fontsize=8)
    axes[2].set_ylabel("validation cross-entropy, nats; one point per seed")
    axes[2].grid(alpha=0.3)
    axes[0].legend(fontsize="x-small")
    _save(figure, path)


def _exponential(axis: Any) -> None:
    x = torch.logspace(-3, 8, 4000, base=2, dtype=torch.float64)
    error = torch.expm1(x.bfloat16().double() - x).abs()
    axis.plot(x, error, ".", markersize=1.5, color="C0", label="measured: exp(bf16(x)) against exp(x)")
    axis.plot(x, worst_error_of_exp(x), color="black", linewidth=0.9, label="worst: exp(half a spacing) - 1")
    axis.plot(x, torch.expm1(x * 2**-9), "--", color="C3", label="exp(x 2^-9) - 1")
    _decorate(axis, "x", "relative error of exp(x), x in bf16")
    axis.set_ylim(1e-6, 3)
    axis.legend(fontsize="x-small")


def _line(axis: Any, rows: Sequence[Row], precision: str, over: str, key: str, **style: Any) -> None:
    """Plot means over the draws; nothing where the rows lack the figure."""
    groups: dict[tuple[float, float], list[Row]] = {}
    for row in rows:
        if row["precision"] == precision and key in row:
            groups.setdefault((row["factor"], row["offset"]), []).append(row)
    points = [tuple(statistics.fmean(row[name] for row in of) for name in (over, key)) for of in groups.values()]
    points = [(x, y) for x, y in points if y > 0]
    if points:
        axis.plot(*zip(*points, strict=True), marker=".", **style)


def _decorate(axis: Any, x: str, y: str, *, log_x: bool = True) -> None:
    if log_x:
        axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)


def _dashes(start: Start) -> str:
    return ":" if start.precision == "fp32" else "-" if start.z_loss else "--"


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
