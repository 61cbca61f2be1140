"""Unigram cross-entropy against explicit sums."""

import math

import numpy as np
import pytest

from data.unigram import count_targets, unigram_cross_entropy


def test_counts_skip_ignored_labels() -> None:
    batches = [{"labels": np.array([[3, 1, -100], [3, 0, 1]])}, {"labels": np.array([[4, -100, -100]])}]
    counts = count_targets(batches, 6)
    assert counts.dtype == np.int64
    assert counts.tolist() == [1, 2, 0, 2, 1, 0]
    assert count_targets([], 3).tolist() == [0, 0, 0]


def test_cross_entropy_with_add_one_smoothing() -> None:
    train, validation = np.array([5, 0, 1]), np.array([1, 2, 0])
    expected = -(1 * math.log(6 / 9) + 2 * math.log(1 / 9)) / 3
    assert unigram_cross_entropy(train, validation) == pytest.approx(expected, rel=1e-12)


def test_uniform_counts_give_the_log_of_the_vocabulary() -> None:
    assert unigram_cross_entropy(np.full(50, 7), np.arange(50)) == pytest.approx(math.log(50), rel=1e-12)


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        unigram_cross_entropy(np.ones(4, np.int64), np.zeros(4, np.int64))
