"""Tables of the stability study: tables 2-4 of Zoph et al. 2022, our figures beside theirs."""

from collections.abc import Sequence
from typing import Any

from studies.runner.runs import Result
from studies.runner.statistics import as_row, by_variant, summarize
from studies.stability.pairs import pairs
from studies.stability.variants import BASELINE, VARIANTS

METRICS = ("router_z_loss", "max_router_logit")
TITLES = {
    2: "Table 2: remove multiplicative interactions",
    3: "Table 3: add noise",
    4: "Table 4: constrain activations and gradients",
}
HEADER = "| Model | Fraction stable | Quality (↑) | Paper: stable | Paper: quality |\n| --- | --- | --- | --- | --- |"
ROUTER_HEADER = "| Model | Mean logsumexp² of the routers | Largest router logit | Spikes |\n| --- | --- | --- | --- |"


def format_tables(results: Sequence[Result]) -> str:
    """Format as Markdown each of the paper's tables of which a variant was run, and a table of the routers.

    Quality is the negative log perplexity (minus the cross-entropy in nats per target token) on held-out text after the
    last step: mean ± standard error over the stable runs, as in the paper.
    """
    grouped = by_variant(results)
    parts = []
    for number, title in TITLES.items():
        names = [name for name in grouped if VARIANTS[name].paper.table == number]
        if names or set(grouped) == {BASELINE}:
            first = [BASELINE] if BASELINE in grouped else []
            rows = [_row(name, grouped[name]) for name in [*first, *names]]
            parts.append("\n".join([f"**{title}**", "", HEADER, *rows]))
    routers = [_router_row(name, grouped[name]) for name in grouped]
    parts.append(
        "\n".join(["**The routers at the end** (stable runs; spikes of all runs)", "", ROUTER_HEADER, *routers])
    )
    return "\n\n".join(parts) + "\n"


def to_rows(results: Sequence[Result]) -> dict[str, Any]:
    """Return the same figures and those of every run, for ``table.json``."""
    return {
        "variants": {
            name: {**as_row(summarize(of_variant), METRICS), "paper": VARIANTS[name].paper._asdict()}
            for name, of_variant in by_variant(results).items()
        },
        "z_loss_against_baseline": [pair._asdict() for pair in pairs(results, BASELINE, "router_z_loss")],
        "runs": [as_row(result, METRICS) for result in results],
    }


def _row(name: str, results: Sequence[Result]) -> str:
    ours, paper = summarize(results), VARIANTS[name].paper
    return (
        f"| {VARIANTS[name].title} | {ours.fraction} | {ours.quality or '-'} | {paper.stable}/{paper.seeds} "
        f"| {paper.quality:.3f} ± {paper.error:.2f} |"
    )


def _router_row(name: str, results: Sequence[Result]) -> str:
    ours = summarize(results)
    figures = " | ".join(str(ours.metrics.get(key, "-")) for key in METRICS)
    return f"| {VARIANTS[name].title} | {figures} | {ours.spikes} |"
