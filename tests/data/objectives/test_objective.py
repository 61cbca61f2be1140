"""Objectives on packs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataConfig
from data.objectives import base
from data.objectives.registry import make_objective
from data.span_corruption import corrupt, random_spans_masks
from data.tokenizer import Tokenizer
from model import losses
from tests.support.examples import raw_tokens


def tokens(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(3, 290, count).astype(np.int32)


@pytest.mark.parametrize("inputs_length", [32, 64, 172])
@pytest.mark.parametrize("count", [1, 2, 30, 71, 72, 143, 400])
def test_span_corruption_of_a_pack_equals_each_chunk_alone(
    tokenizer: Tokenizer, inputs_length: int, count: int
) -> None:
    objective = make_objective(DataConfig(inputs_length=inputs_length), tokenizer)
    pack, raw = tokens(count), objective.raw_length
    chunks = [pack[i : i + raw] for i in range(0, count, raw)]
    inputs, labels = objective.examples(pack, np.random.default_rng(8))
    assert inputs.shape == (len(chunks), inputs_length) and labels.shape == (len(chunks), objective.targets_length)
    rng, full = np.random.default_rng(8), count // raw
    masks = list(random_spans_masks(full, raw, 0.15, 3.0, rng)) if full else []
    masks += list(random_spans_masks(1, count % raw, 0.15, 3.0, rng)) if count % raw else []
    for row, (chunk, mask) in enumerate(zip(chunks, masks, strict=True)):
        (one,), (two,) = corrupt(chunk[None], mask[None], 399, 1)
        if len(two) > objective.targets_length:  # float32 masks one token more than the lengths allow for
            two = np.append(two[: objective.targets_length - 1], 1)
        else:
            assert raw_tokens(inputs[row].tolist(), labels[row].tolist(), tokenizer) == chunk.tolist()
        assert inputs[row].tolist() == [*one, *[0] * (inputs_length - len(one))]
        assert labels[row].tolist() == [*two, *[-100] * (objective.targets_length - len(two))]


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 300), seed=st.integers(0, 1000))
def test_prefix_lm_splits_each_chunk_in_two_and_loses_nothing(tokenizer: Tokenizer, count: int, seed: int) -> None:
    objective = make_objective(DataConfig(inputs_length=64, objective="prefix_lm"), tokenizer)
    assert (objective.raw_length, objective.targets_length) == (63, 63)
    pack = tokens(count)
    chunks = -(-count // 63)
    inputs, labels = objective.examples(pack, np.random.default_rng(seed))
    assert inputs.shape == (chunks, 64) and labels.shape == (chunks, 63)
    rebuilt: list[int] = []
    for i in range(chunks):
        prefix = inputs[i, : list(inputs[i]).index(1)]
        rest = labels[i, : list(labels[i]).index(1)]
        assert not inputs[i, len(prefix) + 1 :].any() and (labels[i, len(rest) + 1 :] == -100).all()
        assert len(rest) >= 1 and (len(prefix) >= 1 or len(rest) == 1)
        rebuilt += [*prefix, *rest]
    assert rebuilt == pack.tolist()


def test_prefix_lengths_are_uniform(tokenizer: Tokenizer) -> None:
    """As T5: from 1 to the length less 1, each as often; chi-square of 62 classes, 99.99 % of fair draws below 120."""
    objective = make_objective(DataConfig(inputs_length=64, objective="prefix_lm"), tokenizer)
    chunks = 6200
    inputs, _ = objective.examples(tokens(63 * chunks), np.random.default_rng(0))
    lengths = (inputs == 1).argmax(axis=1)
    counts = np.bincount(lengths, minlength=63)
    assert counts[0] == 0 and len(counts) == 63
    assert ((counts[1:] - 100.0) ** 2 / 100.0).sum() < 120


def test_long_inputs_are_refused_for_span_corruption_alone(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="needs 114 sentinels"):
        make_objective(DataConfig(inputs_length=2048), tokenizer)
    assert make_objective(DataConfig(inputs_length=2048, objective="prefix_lm"), tokenizer).raw_length == 2047


def test_the_ignored_label_is_that_of_the_model() -> None:
    assert base.IGNORED_LABEL == losses.IGNORED_LABEL
