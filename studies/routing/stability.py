"""How many tokens keep their first expert from one checkpoint to another.

Experts are compared by their number. A run keeps its experts' identity, so that no matching is needed; between runs
that began from different weights numbers mean nothing, and the comparison does not either.

Shape suffixes: T = tokens, X = examples, E = experts, R = resamples.
"""

from dataclasses import dataclass

import numpy as np

from studies.routing.entropies import Estimate
from studies.routing.trace import Array, Trace


@dataclass(frozen=True)
class Agreement:
    """Tokens of a layer that have the same first expert in both."""

    tokens: int
    same: Estimate  # share of tokens
    chance: float  # share if both chose independently, each with its own shares of experts
    kappa: float  # (same - chance) / (1 - chance): 0 is chance, 1 all tokens


def agreement(first_T: Array, other_T: Array, example_T: Array, experts: int, weights_RX: Array) -> Agreement:
    """Compare the first experts of tokens in two checkpoints.

    Args:
        first_T: first expert of each token, -1: none.
        other_T: in the other checkpoint.
        example_T: of each token.
        experts: E.
        weights_RX: see ``entropies.resamples``.
    """
    both_T = (first_T >= 0) & (other_T >= 0)
    first_T, other_T, example_T = first_T[both_T], other_T[both_T], example_T[both_T]
    tokens, examples = len(first_T), weights_RX.shape[1]
    tokens_X = np.bincount(example_T, minlength=examples)
    same_X = np.bincount(example_T, first_T == other_T, minlength=examples)
    share_E, other_E = (np.bincount(part_T, minlength=experts) / max(tokens, 1) for part_T in (first_T, other_T))
    same, chance = float(same_X.sum() / max(tokens, 1)), float(share_E @ other_E)
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled_R = (weights_RX @ same_X) / (weights_RX @ tokens_X)
    kappa = (same - chance) / (1 - chance) if chance < 1 else float("nan")
    return Agreement(tokens, Estimate(same, resampled_R), chance, kappa)


def check_comparable(trace: Trace, other: Trace) -> None:
    """Check that two traces are of the same text and layers. Raises ValueError."""
    for what, ours, theirs in (
        ("sparse layers", list(trace.layers), list(other.layers)),
        ("experts", trace.num_experts, other.num_experts),
    ):
        if ours != theirs:
            raise ValueError(f"--against {other.source} has {what} {theirs}, {trace.source} has {ours}: name another")
    for stack, tokens in trace.stacks.items():
        if not np.array_equal(tokens.token_T, other.stacks[stack].token_T):
            raise ValueError(
                f"--against {other.source} reads the text as other pieces than {trace.source}: name a model with the "
                "same vocabulary"
            )
