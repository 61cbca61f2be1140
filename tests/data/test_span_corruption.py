"""Span corruption against a per-token reference written from the published T5 code."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.span_corruption import check_sentinels, corrupt, random_spans_mask, random_spans_masks, raw_and_target_lengths

SENTINEL, EOS = 32099, 1


def float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def reference_segmentation(num_items: int, num_segments: int, rng: Any) -> list[int]:
    first = np.array([i < num_segments - 1 for i in range(num_items - 1)], dtype=np.int32)
    rng.shuffle(first)
    lengths = [1]
    for starts_segment in first:
        if starts_segment:
            lengths.append(1)
        else:
            lengths[-1] += 1
    return lengths


def reference_counts(length: int, density: float, mean_span: float) -> tuple[int, int]:
    # Products and quotients of two float32 values rounded to float64 and then to float32 are exact float32 results.
    noise = round(float32(float32(length) * float32(density)))
    noise = min(max(noise, 1), length - 1)
    return noise, max(1, round(float32(float32(noise) / float32(mean_span))))


def reference_mask(length: int, density: float, mean_span: float, rng: Any) -> list[bool]:
    longer = max(length, 2)
    noise, spans = reference_counts(longer, density, mean_span)
    noise_lengths = reference_segmentation(noise, spans, rng)
    kept_lengths = reference_segmentation(longer - noise, spans, rng)
    mask: list[bool] = []
    for kept, masked in zip(kept_lengths, noise_lengths, strict=True):
        mask += [False] * kept + [True] * masked
    return mask[:length]


def reference_sentinels(tokens: list[int], masked: list[bool]) -> list[int]:
    """T5 ``noise_span_to_unique_sentinel``, token by token."""
    out: list[int] = []
    sentinel, previous = SENTINEL + 1, False
    for token, is_masked in zip(tokens, masked, strict=True):
        if not is_masked:
            out.append(token)
        elif not previous:
            sentinel -= 1
            out.append(sentinel)
        previous = is_masked
    return out


def reconstruct(inputs: list[int], targets: list[int]) -> list[int]:
    """Replace each sentinel of the inputs by the tokens after it in the targets."""
    assert inputs[-1] == EOS and targets[-1] == EOS
    spans: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if token > SENTINEL - 100:
            assert token not in spans
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    out: list[int] = []
    for token in inputs[:-1]:
        out += spans.pop(token) if token > SENTINEL - 100 else [token]
    assert not spans
    return out


@pytest.mark.parametrize("make_rng", [np.random.default_rng, np.random.RandomState])
def test_masks_equal_the_reference_at_every_length(make_rng: Any) -> None:
    for length in [*range(1, 400), 568, 1137]:
        ours = random_spans_mask(length, 0.15, 3.0, make_rng(length))
        assert ours.dtype == np.bool_
        assert ours.tolist() == reference_mask(length, 0.15, 3.0, make_rng(length)), length


@pytest.mark.parametrize(("length", "masked"), [(190, 29), (350, 53), (390, 59), (568, 85)])
def test_rounding_is_that_of_float32(length: int, masked: int) -> None:
    assert random_spans_mask(length, 0.15, 3.0, np.random.default_rng(0)).sum() == masked


@pytest.mark.parametrize(
    ("inputs", "raw", "targets"), [(128, 141, 29), (256, 284, 58), (512, 568, 114), (1024, 1137, 229)]
)
def test_lengths_of_t5(inputs: int, raw: int, targets: int) -> None:
    assert raw_and_target_lengths(inputs, 0.15, 3.0) == (raw, targets)


def test_lengths_at_density_one_half_are_equal() -> None:
    assert raw_and_target_lengths(512, 0.5, 3.0) == (766, 512)


def test_degenerate_texts() -> None:
    rng = np.random.default_rng(0)
    assert random_spans_mask(0, 0.15, 3.0, rng).tolist() == []
    assert random_spans_mask(1, 0.15, 3.0, rng).tolist() == [False]
    assert random_spans_mask(2, 0.15, 3.0, rng).tolist() == [False, True]
    assert not random_spans_mask(50, 0.0, 3.0, rng).any()


def one_alone_and_three_together(length: int, density: float, mean_span: float, seed: int) -> list[Any]:
    together = random_spans_masks(3, length, density, mean_span, np.random.default_rng(seed))
    return [random_spans_mask(length, density, mean_span, np.random.default_rng(seed)), *together]


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(2, 700),
    density=st.floats(0.01, 0.5),
    mean_span=st.floats(1.5, 10.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_mask_properties(length: int, density: float, mean_span: float, seed: int) -> None:
    noise, spans = reference_counts(length, density, mean_span)
    for mask in one_alone_and_three_together(length, density, mean_span, seed):
        assert mask.dtype == np.bool_ and mask.shape == (length,)
        assert not mask[0] and mask[-1]
        assert mask.sum() == noise
        assert (np.diff(mask.astype(int)) == 1).sum() == min(spans, length - noise)


@settings(max_examples=100, deadline=None)
@given(length=st.integers(2, 60), density=st.floats(0.6, 0.99), seed=st.integers(0, 1000))
def test_high_density_leaves_a_kept_token_before_each_span(length: int, density: float, seed: int) -> None:
    noise, _ = reference_counts(length, density, 1.0)
    for mask in one_alone_and_three_together(length, density, 1.0, seed):
        assert len(mask) == length and not mask[0] and mask[-1] and mask.sum() == noise


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 568), seed=st.integers(0, 2**32 - 1))
def test_corrupt_equals_the_reference_and_loses_nothing(length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 31000, length).astype(np.int32)
    mask = random_spans_mask(length, 0.15, 3.0, rng)
    (inputs,), (targets,) = corrupt(tokens[None], mask[None], SENTINEL, EOS)
    kept = [not masked for masked in mask.tolist()]
    assert inputs.tolist() == [*reference_sentinels(tokens.tolist(), mask.tolist()), EOS]
    assert targets.tolist() == [*reference_sentinels(tokens.tolist(), kept), EOS]
    assert inputs.dtype == targets.dtype == np.int32
    if length > 1:
        assert targets[-2] < 31000
        assert reconstruct(inputs.tolist(), targets.tolist()) == tokens.tolist()


def test_corrupt_of_a_full_example_has_the_planned_lengths() -> None:
    mask = random_spans_mask(568, 0.15, 3.0, np.random.default_rng(0))
    (inputs,), (targets,) = corrupt(np.arange(2, 570)[None], mask[None], SENTINEL, EOS)
    assert (len(inputs), len(targets)) == (512, 114)
    assert inputs[inputs > 1000].tolist() == targets[targets > 1000].tolist() == list(range(32099, 32099 - 28, -1))


def test_corrupt_by_hand() -> None:
    mask = np.array([[False, True, True, False, False, True], [False, False, True, False, True, True]])
    inputs, targets = corrupt(np.array([[5, 6, 7, 8, 9, 10], [15, 16, 17, 18, 19, 20]]), mask, SENTINEL, EOS)
    assert inputs.tolist() == [[5, 32099, 8, 9, 32098, 1], [15, 16, 32099, 18, 32098, 1]]
    assert targets.tolist() == [[32099, 6, 7, 32098, 10, 1], [32099, 17, 32098, 19, 20, 1]]


def test_corrupt_refuses_masks_of_another_shape_or_of_unequal_numbers() -> None:
    with pytest.raises(ValueError, match=r"mask of shape \(1, 3\)"):
        corrupt(np.arange(4)[None], np.zeros((1, 3), np.bool_), SENTINEL, EOS)
    with pytest.raises(ValueError, match=r"reshape|assign"):
        corrupt(np.zeros((2, 3), int), np.array([[False, True, True], [False, False, True]]), SENTINEL, EOS)


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, 300), texts=st.integers(1, 5), seed=st.integers(0, 1000))
def test_texts_together_equal_each_alone(length: int, texts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 31000, (texts, length)).astype(np.int32)
    masks = random_spans_masks(texts, length, 0.15, 3.0, rng)
    inputs, targets = corrupt(tokens, masks, SENTINEL, EOS)
    for i in range(texts):
        for own, rows in zip(
            corrupt(tokens[i : i + 1], masks[i : i + 1], SENTINEL, EOS), (inputs, targets), strict=True
        ):
            np.testing.assert_array_equal(own[0], rows[i])


def test_masks_drawn_together_are_as_likely_as_those_of_the_published_code() -> None:
    """12 tokens, 6 masked in 3 spans: 10 x 10 masks, each as likely. Chi-square of 99 degrees, 1 in 10^6 above 170."""
    texts, rng = 20_000, np.random.default_rng(5)
    together = random_spans_masks(texts, 12, 0.5, 2.0, rng)
    alone = np.stack([random_spans_mask(12, 0.5, 2.0, rng) for _ in range(texts)])
    for masks in (together, alone):
        kinds, counts = np.unique(np.packbits(masks, axis=1), axis=0, return_counts=True)
        assert len(kinds) == 100
        assert ((counts - texts / 100) ** 2 / (texts / 100)).sum() < 170
    # Texts of one call are independent.
    pairs = np.unique(np.packbits(together.reshape(-1, 24)[:, [1, 2, 3, 13, 14, 15]], axis=1), return_counts=True)
    single = np.unique(np.packbits(together[:, 1:4], axis=1), return_counts=True)
    expected = np.outer(single[1], single[1]) / texts**2 * len(together) / 2
    assert ((pairs[1] - expected.reshape(-1)) ** 2 / expected.reshape(-1)).sum() < 5 * expected.size


def test_too_few_sentinels_is_an_error_with_the_limit() -> None:
    with pytest.raises(ValueError, match=r"data\.inputs_length = 2048 needs 114 sentinels") as caught:
        check_sentinels(2048, 0.15, 3.0)
    assert "\n" not in str(caught.value)
    check_sentinels(1809, 0.15, 3.0)
    with pytest.raises(ValueError, match="at most 1809"):
        check_sentinels(1810, 0.15, 3.0)
