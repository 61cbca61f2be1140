"""The report of the stability study: tables, figures, and what a study of this scale can and cannot show."""

from collections.abc import Sequence
from pathlib import Path

from studies.runner.divergence import DURATION, MARGIN_NATS
from studies.runner.execute import last_words
from studies.runner.runs import Result, Run
from studies.runner.statistics import by_variant, summarize
from studies.stability.pairs import Pair, pairs
from studies.stability.table import format_tables
from studies.stability.variants import BASELINE, VARIANTS

CONFIDENCE = 0.95


def write_report(runs: Sequence[Run], results: Sequence[Result], config_file: str, path: Path) -> None:
    """Write the report as Markdown, in the folder of ``curves.png`` and ``quality_stability.png``."""
    sections = [
        f"# Stability study of {config_file}",
        _what_was_run(runs),
        format_tables(results).rstrip(),
        _compare_z_loss(pairs(results, BASELINE, "router_z_loss")),
        "![loss, logsumexp² and largest router logit over the steps](curves.png)",
        "![quality against stability](quality_stability.png)",
        _unstable(runs, results),
        _limits(runs, results),
    ]
    path.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")


def least_stable_fraction(seeds: int) -> float:
    """Return the true fraction of stable seeds with which ``seeds`` of ``seeds`` are stable in 5 % of studies."""
    return (1 - CONFIDENCE) ** (1 / seeds)


def _what_was_run(runs: Sequence[Run]) -> str:
    t = runs[0].config.training
    summary = next((s for run in runs if (s := run.folder.summary())), {})
    size = f"{summary['parameters_total']:,} parameters, {summary['tokens']:,} tokens" if summary else "none finished"
    return (
        f"{len(runs)} runs of {t.steps:,} steps ({size} in the first). All runs see the same text in the same order; a "
        "seed sets the initial weights and the randomness of training. Each variant changes one thing of the baseline, "
        "which has no router z-loss. A run counts as unstable if a loss or gradient is not finite, or if the median of "
        f"its training cross-entropy over {DURATION:.0%} of the steps is more than {MARGIN_NATS} nats above the lowest "
        "median before (`studies/runner/divergence.py`); shorter excursions are spikes."
    )


def _compare_z_loss(found: Sequence[Pair]) -> str:
    if not found:
        return ""
    rows = [
        f"| {p.seed} | {p.router_z_loss[0]:.4f} | {p.router_z_loss[1]:.4f} "
        f"| {p.router_z_loss[0] / p.router_z_loss[1]:.1f} | {p.cross_entropy[0]:.4f} | {p.cross_entropy[1]:.4f} "
        f"| {p.cross_entropy[1] - p.cross_entropy[0]:+.4f} |"
        for p in found
    ]
    n = len(found)
    z = [sum(p.router_z_loss[i] for p in found) / n for i in (0, 1)]
    ce = [sum(p.cross_entropy[i] for p in found) / n for i in (0, 1)]
    rows.append(
        f"| mean | {z[0]:.4f} | {z[1]:.4f} | {z[0] / z[1]:.1f} | {ce[0]:.4f} | {ce[1]:.4f} | {ce[1] - ce[0]:+.4f} |"
    )
    header = (
        "| Seed | logsumexp², baseline | with z-loss | ratio | validation cross-entropy, baseline | with z-loss "
        "| difference |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    return "\n".join(["**Router z-loss against the baseline, seed by seed**", "", header, *rows])


def _unstable(runs: Sequence[Run], results: Sequence[Result]) -> str:
    lines = []
    for run, result in zip(runs, results, strict=True):
        if result.status == "diverged":
            lines.append(f"- `{run.name}` diverged at step {result.verdict.diverged_at}: {result.verdict.reason}")
        elif result.status == "unfinished" and run.log.is_file():
            lines.append(f"- `{run.name}` is not finished: {last_words(run.log)}")
    return "\n".join(["## Diverged and unfinished runs", "", *lines]) if lines else ""


def _limits(runs: Sequence[Run], results: Sequence[Result]) -> str:
    """Write what follows from the number of seeds and from the scale, computed from the runs alone."""
    lines = ["## What this can and cannot show", ""]
    summaries = {name: summarize(of_variant) for name, of_variant in by_variant(results).items()}
    whole = {s.stable for s in summaries.values() if s.stable and s.stable == s.over}
    for n in sorted(whole):
        lines.append(
            f"- {n} of {n} seeds stable: a variant that is stable on {least_stable_fraction(n):.0%} of seeds gives "
            "this result in 1 of 20 studies. So few seeds do not prove stability; a single failure disproves it."
        )
    baseline = summaries.get(BASELINE)
    if baseline and baseline.over and baseline.stable == baseline.over:
        lines.append(
            "- The baseline was stable on every seed, so this study does not show which technique stabilizes training: "
            "only what each costs in quality, and what it does to the router logits. `docs/stability.md` has settings "
            "in which small models diverge."
        )
    if baseline and baseline.quality and baseline.quality.error:
        close = [
            VARIANTS[name].title
            for name, s in summaries.items()
            if name != BASELINE and s.quality and s.quality.error is not None
            and abs(s.quality.value - baseline.quality.value)
            < 2 * (s.quality.error**2 + baseline.quality.error**2) ** 0.5
        ]  # fmt: skip
        if close:
            lines.append(
                f"- Within two standard errors of the baseline's quality, so not distinguishable: {', '.join(close)}."
            )
    lines.append(
        "- The paper's figures are for models with billions of parameters on a multilingual mixture, after many more "
        "steps: the fractions and the ranking by quality compare with ours, the qualities themselves do not."
    )
    return "\n".join(lines)
