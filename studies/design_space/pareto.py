"""The Pareto front of quality against cost, and its picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Point(NamedTuple):
    """A variant in the plane of cost and quality."""

    name: str
    cost: float
    quality: float  # negative log perplexity
    error: float  # standard error of the quality; 0 with one seed


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats, by rising cost: none has a lower or equal cost and a higher quality.

    Of points with equal cost only the best is kept, of equal points the first.
    """
    best, found = float("-inf"), []
    for point in sorted(points, key=lambda point: (point.cost, -point.quality)):
        if point.quality > best:
            found.append(point)
            best = point.quality
    return found


def plot_fronts(panels: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Plot quality over cost, one panel per kind of cost, with its front as a line; up and left is better.

    Args:
        panels: label of the axis → points.
        path: of the PNG file.
    """
    import matplotlib  # takes seconds

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(7 * len(panels), 6), layout="constrained", squeeze=False)
    for axis, (label, points) in zip(axes[0], panels.items(), strict=True):
        best = front(points)
        axis.plot([p.cost for p in best], [p.quality for p in best], color="C1", linewidth=1, label="Pareto front")
        for point in points:
            color = "C1" if point in best else "C0"
            axis.errorbar(point.cost, point.quality, yerr=point.error, fmt="o", markersize=4, capsize=2, color=color)
            axis.annotate(
                point.name, (point.cost, point.quality), xytext=(4, 3), textcoords="offset points", fontsize="x-small"
            )
        axis.set_xlabel(label)
        axis.set_ylabel("quality: negative log perplexity")
        axis.grid(alpha=0.3)
        axis.margins(x=0.15, y=0.08)
        axis.legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
