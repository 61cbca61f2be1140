"""Unigram baseline: the cross-entropy of predicting each target from token frequencies alone, without context."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from data.objectives.base import IGNORED_LABEL


def count_targets(batches: Iterable[Mapping[str, NDArray[np.integer]]], vocab_size: int) -> NDArray[np.int64]:
    """Count how often each id is a target.

    Args:
        batches: each with ``labels``, int [batch, targets_length], ``IGNORED_LABEL`` where ignored.
        vocab_size: upper bound of the ids, exclusive.

    Returns:
        int64 [vocab_size].
    """
    counts = np.zeros(vocab_size, np.int64)
    for batch in batches:
        labels = batch["labels"]
        counts += np.bincount(labels[labels != IGNORED_LABEL], minlength=vocab_size)
    return counts


def unigram_cross_entropy(train_counts: NDArray[np.int64], validation_counts: NDArray[np.int64]) -> float:
    """Return the nats per validation target under the unigram distribution of the training targets.

    Add-one smoothing over the vocabulary: p(i) = (train_counts[i] + 1) / (sum(train_counts) + vocab_size).

    Args:
        train_counts: int64 [vocab_size].
        validation_counts: int64 [vocab_size].

    Raises:
        ValueError: there are no validation targets.
    """
    total = int(validation_counts.sum())
    if total == 0:
        raise ValueError("the unigram cross-entropy needs at least one validation target")
    log_probs = np.log(train_counts + 1.0) - np.log(train_counts.sum() + len(train_counts))
    return float(-(validation_counts * log_probs).sum() / total)
