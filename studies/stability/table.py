"""The stability study's tables: the paper's tables 2-4, ours beside theirs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from studies.runner.runs import Result
from studies.runner.statistics import by_variant, pairs, summarize
from studies.stability.variants import BASELINE, VARIANTS

TITLES = {
    2: "Table 2: remove multiplicative interactions",
    3: "Table 3: add noise",
    4: "Table 4: constrain activations and gradients",
}
HEADER = "| Model | Fraction stable | Quality (↑) | Paper: stable | Paper: quality |\n| --- | --- | --- | --- | --- |"
ROUTER_HEADER = "| Model | Mean logsumexp² of the routers | Largest router logit | Spikes |\n| --- | --- | --- | --- |"


def format_tables(results: Sequence[Result]) -> str:
    """Markdown: each of the paper's tables of which a variant was run, and the routers' state.

    Quality is the negative log perplexity, minus the cross-entropy in nats per target token, on held-out text after the
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


def to_json(results: Sequence[Result]) -> dict[str, Any]:
    """The same with every run, for programs."""
    return {
        "variants": {
            name: {**asdict(summarize(of_variant)), "paper": VARIANTS[name].paper._asdict()}
            for name, of_variant in by_variant(results).items()
        },
        "z_loss_against_baseline": [asdict(pair) for pair in pairs(results, BASELINE, "router_z_loss")],
        "runs": [asdict(result) for result in results],
    }


def _row(name: str, results: Sequence[Result]) -> str:
    ours, paper = summarize(results), VARIANTS[name].paper
    return (
        f"| {VARIANTS[name].title} | {ours.fraction} | {ours.quality or '-'} | {paper.stable}/{paper.seeds} "
        f"| {paper.quality:.3f} ± {paper.error:.2f} |"
    )


def _router_row(name: str, results: Sequence[Result]) -> str:
    ours = summarize(results)
    return f"| {VARIANTS[name].title} | {ours.router_z_loss or '-'} | {ours.max_router_logit or '-'} | {ours.spikes} |"
