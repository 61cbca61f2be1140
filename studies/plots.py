"""Figures of the studies, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from studies.runner.divergence import MARGIN_NATS
from studies.runner.runs import Result, Run
from studies.runner.statistics import by_variant, summarize
from training.monitoring.columns import training_rows

matplotlib.use("Agg")
from matplotlib import pyplot

SMOOTH_ROWS = 10


def plot_curves(runs: Sequence[Run], path: Path) -> None:
    """Plot training cross-entropy, mean logsumexp² and largest router logit over the steps, one line per run."""
    quantities = (
        ("cross_entropy", "training cross-entropy, nats"),
        ("router_z_loss", "mean (logsumexp of router logits)²"),
        ("max_router_logit", "largest router logit"),
    )
    figure, axes = pyplot.subplots(1, 3, figsize=(18, 5.5), layout="constrained")
    colors = _colors([run.variant for run in runs])
    for run in runs:
        rows = training_rows(run.folder.rows())
        label = run.variant if run.seed == min(r.seed for r in runs if r.variant == run.variant) else None
        for axis, (key, _) in zip(axes, quantities, strict=True):
            values = [row[key] for row in rows]
            smooth = SMOOTH_ROWS if key == "cross_entropy" else 1
            steps = [row["step"] for row in rows][smooth - 1 :]
            means = [sum(values[i : i + smooth]) / smooth for i in range(len(values) - smooth + 1)]
            axis.plot(steps, means, color=colors[run.variant], linewidth=0.9, alpha=0.8, label=label)
    for axis, (key, title) in zip(axes, quantities, strict=True):
        axis.set_xlabel("step")
        axis.set_ylabel(title + (f", mean of {SMOOTH_ROWS} rows" if key == "cross_entropy" else ""))
        axis.grid(alpha=0.3)
        if key == "router_z_loss":
            axis.set_yscale("log")
    axes[0].legend(fontsize="small")
    _save(figure, path)


def plot_quality_against_stability(results: Sequence[Result], path: Path) -> None:
    """Plot one point per variant with its standard error; up and right is better."""
    figure, axis = pyplot.subplots(figsize=(7, 5), layout="constrained")
    grouped = by_variant(results)
    colors = _colors(list(grouped))
    for name, of_variant in grouped.items():
        summary = summarize(of_variant)
        if summary.quality is None:
            continue
        axis.errorbar(
            100 * summary.stable / summary.over, summary.quality.value, yerr=summary.quality.error or 0.0,
            fmt="o", capsize=3, color=colors[name], label=f"{name} ({summary.fraction})",
        )  # fmt: skip
    axis.set_xlim(-5, 105)
    axis.set_xlabel(f"stable runs, % (unstable: {MARGIN_NATS} nats above the run's level, or not finite)")
    axis.set_ylabel("quality: negative log perplexity")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    _save(figure, path)


def plot_sweep(results: Mapping[float, Sequence[Result]], path: Path) -> None:
    """Plot quality, final L_Z and largest logit over c_Z; 0 is at the left end of the logarithmic axis."""
    smallest = min((value for value in results if value), default=1.0)
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    quantities = (
        ("quality", "quality: negative log perplexity"),
        ("router_z_loss", "final L_Z"),
        ("max_router_logit", "largest router logit"),
    )
    for axis, (key, title) in zip(axes, quantities, strict=True):
        coefficients, means, errors = [], [], []
        for coefficient, of_value in results.items():
            summary = summarize(of_value)
            mean = summary.quality if key == "quality" else summary.metrics.get(key)
            if mean is not None:
                coefficients.append(coefficient)
                means.append(mean.value)
                errors.append(mean.error or 0.0)
        axis.errorbar(coefficients, means, yerr=errors, fmt="o-", capsize=3)
        axis.set_xscale("symlog", linthresh=smallest)
        axis.set_xlabel("c_Z, router z-loss coefficient")
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
        if key == "router_z_loss":
            axis.set_yscale("log")
    _save(figure, path)


def plot_lines(
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]], x_label: str, y_label: str, path: Path
) -> None:
    """Plot lines of (label, xs, ys); those of one label have its color, and one entry in the legend."""
    figure, axis = pyplot.subplots(figsize=(7, 5), layout="constrained")
    colors = _colors([label for label, _, _ in lines])
    for index, (label, xs, ys) in enumerate(lines):
        first = label not in [other for other, _, _ in lines[:index]]
        axis.plot(xs, ys, marker=".", color=colors[label], linewidth=0.9, alpha=0.8, label=label if first else None)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    _save(figure, path)


def _colors(names: Sequence[str]) -> dict[str, Any]:
    return {name: f"C{index}" for index, name in enumerate(dict.fromkeys(names))}


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
