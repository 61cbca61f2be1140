"""What single experts have: their words, their places in the text, and how alike two of them are.

Shape suffixes: T = tokens, E = experts, W = words, C = classes, B = bins of positions.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from studies.routing.information import LEAST_TOKENS
from studies.routing.trace import Array

MOST_WORDS = 10  # of an expert
LEVEL = 0.05  # of all tests of a layer together


@dataclass(frozen=True)
class Word:
    """A word that an expert gets more often than its share of all tokens."""

    text: str
    tokens: int  # of the word, in this expert
    of_word: float  # share of the word's tokens that this expert gets
    z: float  # see ``specific_words``


def count_table(first_T: Array, value_T: Array, experts: int, values: int) -> Array:
    """Return how many tokens of each value go to each expert first, float64 ``[E, values]``."""
    chosen_T = first_T >= 0
    cell_T = first_T[chosen_T] * values + value_T[chosen_T]
    return np.bincount(cell_T, minlength=experts * values).reshape(experts, values).astype(np.float64)


def specific_words(
    counts_EW: Array, texts: list[str], *, most: int = MOST_WORDS, least: int = LEAST_TOKENS, level: float = LEVEL
) -> list[list[Word]]:
    """Return the most specific words of each expert, those of the largest z first.

    z is the adjusted residual of the table (Haberman 1973): observed less expected count over its standard deviation if
    experts and words were independent, then normal. Words count if z exceeds the limit at which one of all words and
    experts of the layer would by chance with probability ``level`` (Bonferroni, one-sided). Tokens of one text are less
    independent than that: a word of few examples may be in the list for its topic.

    Args:
        counts_EW: first choices.
        texts: of the words.
        most: words of an expert.
        least: tokens of a word that is considered.
        level: see above.
    """
    counts_W, counts_E, total = counts_EW.sum(0), counts_EW.sum(1), counts_EW.sum()
    considered = np.flatnonzero(counts_W >= least)
    if not len(considered):
        return [[] for _ in counts_E]
    z_EW = adjusted_residuals(counts_EW)[:, considered]
    of_word_EW = counts_EW / np.maximum(counts_W, 1)
    limit = NormalDist().inv_cdf(1 - level / (len(considered) * len(counts_E)))
    found: list[list[Word]] = []
    for expert in range(len(counts_E) if total else 0):
        best = considered[np.argsort(-z_EW[expert], kind="stable")[:most]]
        z_of = dict(zip(considered.tolist(), z_EW[expert].tolist(), strict=True))
        found.append(
            [
                Word(texts[word], int(counts_EW[expert, word]), float(of_word_EW[expert, word]), z_of[word])
                for word in best.tolist()
                if z_of[word] > limit
            ]
        )
    return found


def adjusted_residuals(counts_EW: Array) -> Array:
    """Return (n - expected) / sqrt(expected (1 - p(e)) (1 - p(w))) of each cell; 0 where nothing can vary."""
    total = max(counts_EW.sum(), 1.0)
    p_E, p_W = counts_EW.sum(1) / total, counts_EW.sum(0) / total
    expected_EW = total * np.outer(p_E, p_W)
    variance_EW = expected_EW * np.outer(1 - p_E, 1 - p_W)
    varies = variance_EW > 0
    result: Array = np.where(varies, (counts_EW - expected_EW) / np.sqrt(np.where(varies, variance_EW, 1)), 0.0)
    return result


def overlap(counts_EW: Array) -> Array:
    """Return for each two experts the common part of their words, sum over words of the lesser share, ``[E, E]``.

    1: the same words equally often; 0: no word in common, or an expert without tokens.
    """
    share_EW = counts_EW / np.maximum(counts_EW.sum(1, keepdims=True), 1)
    overlap_EE: Array = np.stack([np.minimum(share_EW, share_W).sum(1) for share_W in share_EW])
    return overlap_EE


def class_shares(counts_EC: Array) -> Array:
    """Return the share of each class's tokens that each expert gets, ``[C, E]``; 0 of a class without tokens."""
    shares_CE: Array = (counts_EC / np.maximum(counts_EC.sum(0), 1)).T
    return shares_CE


def off_diagonal(matrix_EE: Array) -> Array:
    """Return the values of pairs of two different experts, each pair once."""
    values: Array = matrix_EE[np.triu_indices(len(matrix_EE), 1)]
    return values
