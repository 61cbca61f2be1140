"""Cross-entropy of the best guess that ignores all context: what a model must beat to have learned anything."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

IGNORED_LABEL = -100


def count_targets(batches: Iterable[Mapping[str, NDArray[np.integer]]], vocab_size: int) -> NDArray[np.int64]:
    """How often each id is a target.

    Args:
        batches: each with `labels`, int [batch, targets_length], -100 where ignored.
        vocab_size: ids are below it.

    Returns:
        int64 [vocab_size].
    """
    counts = np.zeros(vocab_size, np.int64)
    for batch in batches:
        labels = batch["labels"]
        counts += np.bincount(labels[labels != IGNORED_LABEL], minlength=vocab_size)
    return counts


def unigram_cross_entropy(train_counts: NDArray[np.int64], validation_counts: NDArray[np.int64]) -> float:
    """Nats per validation target under the unigram distribution of the training targets.

    Add-one smoothing over the vocabulary: p(i) = (train_counts[i] + 1) / (sum(train_counts) + vocabulary).

    Args:
        train_counts: int64 [vocabulary].
        validation_counts: int64 [vocabulary].

    Raises:
        ValueError: there is no validation target.
    """
    total = int(validation_counts.sum())
    if total == 0:
        raise ValueError("the unigram cross-entropy needs at least one validation target")
    log_probs = np.log(train_counts + 1.0) - np.log(train_counts.sum() + len(train_counts))
    return float(-(validation_counts * log_probs).sum() / total)
