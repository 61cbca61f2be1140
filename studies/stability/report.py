"""The report page of the stability study: tables, figures, and what a study of this scale can and cannot show."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studies.runner.divergence import DURATION, MARGIN_NATS
from studies.runner.execute import last_words
from studies.runner.runs import Result, Run
from studies.runner.statistics import Pair, by_variant, pairs, summarize
from studies.stability.table import format_tables
from studies.stability.variants import BASELINE, VARIANTS

CONFIDENCE = 0.95


def write_report(runs: Sequence[Run], results: Sequence[Result], config_file: str, path: Path) -> None:
    """Write the page beside ``curves.png`` and ``quality_stability.png``."""
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
    """The true fraction of stable seeds below which ``seeds`` out of ``seeds`` come out in less than 5 % of studies."""
    return (1 - CONFIDENCE) ** (1 / seeds)


def _what_was_run(runs: Sequence[Run]) -> str:
    t = runs[0].config.training
    summary = next((s for s in map(_summary, runs) if s), {})
    size = f"{summary['parameters_total']:,} parameters, {summary['tokens']:,} tokens" if summary else "no run is over"
    return (
        f"{len(runs)} runs of {t.steps:,} steps ({size} in the first). All runs see the same text in the same order; a "
        "seed sets the initial weights and the randomness of training. Each variant changes one thing of the baseline, "
        "which has no router z-loss. A run counts as unstable if a number is not finite, or if the median of its "
        f"training cross-entropy over {DURATION:.0%} of the steps is more than {MARGIN_NATS} nats above what it had "
        "reached before (`studies/runner/divergence.py`); shorter excursions are spikes."
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
    return "\n".join(["## Runs that did not hold", "", *lines]) if lines else ""


def _limits(runs: Sequence[Run], results: Sequence[Result]) -> str:
    """What follows from the number of seeds and from the size; nothing that was not computed from the runs."""
    lines = ["## What this can and cannot show", ""]
    summaries = {name: summarize(of_variant) for name, of_variant in by_variant(results).items()}
    whole = {s.stable for s in summaries.values() if s.stable and s.stable == s.over}
    for n in sorted(whole):
        lines.append(
            f"- {n} of {n} seeds stable: a variant that is stable on {least_stable_fraction(n):.0%} of seeds does "
            "that in 1 of 20 studies. So few seeds prove no stability; one that fails disproves it."
        )
    baseline = summaries.get(BASELINE)
    if baseline and baseline.over and baseline.stable == baseline.over:
        lines.append(
            "- The baseline was stable on every seed, so this study does not say which technique stabilises: only "
            "what each costs in quality, and what it does to the router logits. `docs/stability.md` has settings in "
            "which small models fail."
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
                f"- Within two standard errors of the baseline's quality, so not told apart: {', '.join(close)}."
            )
    lines.append(
        "- The paper's figures are of models of billions of parameters on a multilingual mixture, after many more "
        "steps: the fractions and the order of the qualities compare with ours, the qualities themselves do not."
    )
    return "\n".join(lines)


def _summary(run: Run) -> dict[str, Any]:
    path = run.dir / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
