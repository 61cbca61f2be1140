"""The picture of batch sizes and learning rates, as the paper's figure: means of the sparse and of the dense model."""

from pathlib import Path

from studies.finetuning.sources import DENSE, SPARSE
from studies.finetuning.tables import Results, means_over, score
from studies.finetuning.variants import BATCHES

COLORS = {SPARSE: "C1", DENSE: "C0"}
AXES = ("batch size, examples", "learning rate")
ASIDE = {SPARSE: 0.96, DENSE: 1.04}  # factors, so that points of the two do not hide each other


def plot_grid(results: Results, path: Path) -> bool:
    """Plot scores over batch size and over learning rate: a point per setting, a line through the means.

    Args:
        results: of the study.
        path: of the PNG file.

    Returns:
        Whether there is anything to plot.
    """
    cells = {
        kind: {s: mean for s, rows in results.by_setting(BATCHES, kind).items() if (mean := score(rows))}
        for kind in (SPARSE, DENSE)
    }
    if not any(cells.values()):
        return False
    import matplotlib  # takes seconds

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    for axis, (label, panel) in enumerate(zip(AXES, panels, strict=True)):
        for kind, color in COLORS.items():
            points = [(setting[axis] * ASIDE[kind], mean.value) for setting, mean in cells[kind].items()]
            panel.plot(*zip(*points, strict=True), "o", color=color, alpha=0.35, markersize=4) if points else None
            means = sorted(means_over(results, kind, axis).items())
            panel.errorbar(
                [value * ASIDE[kind] for value, _ in means],
                [mean.value for _, mean in means],
                yerr=[mean.error or 0.0 for _, mean in means],
                marker="o", capsize=3, color=color, label=kind,
            )  # fmt: skip
        values = sorted({setting[axis] for of in cells.values() for setting in of})
        panel.set_xscale("log")
        panel.set_xticks(values, [f"{value:g}" for value in values])
        panel.minorticks_off()
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("mean score of the tasks")
    panels[1].legend(loc="best")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True
