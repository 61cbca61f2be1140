"""Mutual information between the first expert of a token and what the token is, in nats, with a permutation test.

I(E; F) = sum over experts e and values f of p(e, f) ln(p(e, f) / (p(e) p(f))), of the relative frequencies. From
finitely many tokens that comes out above 0 even if nothing depends on anything: by about (K_ef - K_e - K_f + 1) / (2 T)
nats, with K the numbers of cells, experts and values that occur (Miller 1955). ``corrected`` has this much less.

The test shuffles the values and counts how often I comes out at least as large: p = (1 + count) / (1 + permutations),
so that 200 permutations give no p below 0.005. Tokens of one example are no independent draws. So values are shuffled
among the tokens of their own example; the domain, the same within an example, is shuffled among examples. ``chance`` is
the mean I of the shuffled values: where examples differ from each other it is above 0 for any number of tokens.

Shape suffixes: T = tokens of a stack, X = examples, E = experts, F = values of a factor.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from studies.routing.trace import Array

PERMUTATIONS = 200
BINS = 16  # of positions
LEAST_TOKENS = 10  # of a word that counts on its own; all rarer words are one value


@dataclass(frozen=True)
class Information:
    """What the first expert tells of a factor."""

    plug_in: float  # nats, of the relative frequencies
    corrected: float  # nats, less what chance adds by Miller's formula
    chance: float  # nats, mean of the permutations
    p_value: float
    of_expert: float  # nats, entropy of the experts, the most that any factor can have


def mutual_information(expert_T: Array, value_T: Array, experts: int, values: int) -> tuple[float, float]:
    """Return I from relative frequencies and Miller's correction of it, nats.

    Args:
        expert_T: int64, from 0 to ``experts`` - 1.
        value_T: int64, from 0 to ``values`` - 1.
        experts: E.
        values: F.
    """
    counts_EF = _counts(expert_T, value_T, experts, values)
    counts_E, counts_F = counts_EF.sum(1), counts_EF.sum(0)
    tokens = max(int(counts_E.sum()), 1)
    cells, rows, columns = (np.count_nonzero(counts) for counts in (counts_EF, counts_E, counts_F))
    plain = (_n_log_n(counts_EF) - _n_log_n(counts_E) - _n_log_n(counts_F) + tokens * np.log(tokens)) / tokens
    return float(plain), float(plain - (cells - rows - columns + 1) / (2 * tokens))


def information_of_layers(
    experts_of: Mapping[str, Array],
    factors: Mapping[str, Array],
    example_T: Array,
    experts: int,
    *,
    constant: frozenset[str] = frozenset(),
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, dict[str, Information]]:
    """Return the mutual information of every layer with every factor; one permutation serves all layers.

    Args:
        experts_of: first expert of each token, of each layer of a stack; tokens without one (-1) are not counted.
        factors: int64, value of each token, from 0.
        example_T: of each token, ascending.
        experts: E.
        constant: factors that are the same for all tokens of an example.
        permutations: of each test.
        seed: of the permutations.

    Returns:
        By layer and factor.
    """
    rng = np.random.default_rng(seed)
    sizes = {factor: int(value_T.max(initial=0)) + 1 for factor, value_T in factors.items()}
    found = {
        (layer, factor): mutual_information(*_chosen(expert_T, factors[factor]), experts, sizes[factor])
        for layer, expert_T in experts_of.items()
        for factor in factors
    }
    total, reached = dict.fromkeys(found, 0.0), dict.fromkeys(found, 0)
    for _ in range(permutations):
        order_T = np.argsort(example_T + rng.random(len(example_T)))
        swapped_T = _swap_examples(example_T, rng) if constant else order_T
        for factor, value_T in factors.items():
            shuffled_T = value_T[swapped_T if factor in constant else order_T]
            for layer, expert_T in experts_of.items():
                pair = _chosen(expert_T, shuffled_T)
                value, _ = mutual_information(*pair, experts, sizes[factor])
                total[layer, factor] += value
                # Sums in another order differ in the last bits.
                reached[layer, factor] += value >= found[layer, factor][0] - 1e-12
    return {
        layer: {
            factor: Information(
                *found[layer, factor],
                chance=total[layer, factor] / max(permutations, 1),
                p_value=(1 + reached[layer, factor]) / (1 + permutations),
                of_expert=entropy(np.bincount(expert_T[expert_T >= 0], minlength=experts)),
            )
            for factor in factors
        }
        for layer, expert_T in experts_of.items()
    }


def entropy(counts: Array) -> float:
    """Return the entropy of relative frequencies, nats; 0 without counts."""
    total = counts.sum()
    return float(np.log(total) - _n_log_n(counts) / total) if total else 0.0


def positions_in_bins(position_T: Array, bins: int = BINS) -> Array:
    """Return the bin of each position, int64: equal parts of the longest example of the stack."""
    return position_T.astype(np.int64) * bins // (int(position_T.max(initial=0)) + 1)


def frequent(value_T: Array, least: int = LEAST_TOKENS) -> Array:
    """Return values numbered anew from 0, all that fewer than ``least`` tokens have as one, int64."""
    counts = np.bincount(value_T)
    is_frequent = counts >= least
    number = np.where(is_frequent, np.cumsum(is_frequent) - 1, is_frequent.sum())
    return number[value_T]


def _chosen(expert_T: Array, value_T: Array) -> tuple[Array, Array]:
    chosen_T = expert_T >= 0
    return (expert_T, value_T) if chosen_T.all() else (expert_T[chosen_T], value_T[chosen_T])


def _counts(expert_T: Array, value_T: Array, experts: int, values: int) -> Array:
    return np.bincount(expert_T * values + value_T, minlength=experts * values).reshape(experts, values)


def _n_log_n(counts: Array) -> float:
    some = counts[counts > 0].astype(np.float64)
    return float((some * np.log(some)).sum())


def _swap_examples(example_T: Array, rng: np.random.Generator) -> Array:
    """For each token, a token of the example whose values its own example gets."""
    example_X, first_X = np.unique(example_T, return_index=True)
    to_X = first_X[rng.permutation(len(example_X))]
    return to_X[np.searchsorted(example_X, example_T)]
