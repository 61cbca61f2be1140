"""T5 span corruption: which tokens are masked, and the (inputs, targets) pair that follows.

Source: the published T5 code (google-research/text-to-text-transfer-transformer, t5/data/preprocessors.py:
`random_spans_helper`, `random_spans_noise_mask`, `noise_span_to_unique_sentinel`), in numpy.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

NUM_SENTINELS = 100

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.integer]
Rng = np.random.Generator | np.random.RandomState


def raw_and_target_lengths(inputs_length: int, density: float, mean_span: float) -> tuple[int, int]:
    """Longest raw text that fills `inputs_length` once corrupted, and the length of its targets.

    One sentinel per span and one EOS are counted on either side: 512 -> (568, 114) at density 0.15, mean span 3.
    Source: T5 `random_spans_helper`, float64 arithmetic and its density-0.5 special case included.

    Args:
        inputs_length: tokens in the encoder inputs, EOS included.
        density: fraction of masked tokens, in [0, 1).
        mean_span: mean tokens per masked span.

    Returns:
        (raw tokens, target tokens).
    """

    def corrupted_lengths(raw: int) -> tuple[int, int]:
        noise = round(raw * density)
        spans = round(noise / mean_span)
        return raw - noise + spans + 1, noise + spans + 1

    raw = inputs_length - 1
    while corrupted_lengths(raw + 1)[0] <= inputs_length:
        raw += 1
    inputs, targets = corrupted_lengths(raw)
    if density == 0.5 and targets > inputs:
        return raw - 1, targets - 1
    return raw, targets


def noise_counts(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """(masked tokens, masked spans) of a text of `length` >= 2 tokens, rounded in float32 as T5 does."""
    noise = int(np.rint(np.float32(length) * np.float32(density)))
    noise = min(max(noise, 1), length - 1)
    spans = int(np.rint(np.float32(noise) / np.float32(mean_span)))
    # A span needs one masked token and one kept token before it: at high density there are too few to keep.
    return noise, min(max(spans, 1), noise, length - noise)


def random_spans_mask(length: int, density: float, mean_span: float, rng: Rng) -> BoolArray:
    """Random spans to mask in one text; kept and masked spans alternate, the first is kept, the last masked.

    Draws as the published code does: two shuffles, masked lengths first. Another implementation that shuffles the same
    arrays in the same order gives the same mask. A text of one token is not masked (T5: the mask of two, cut to one).

    Args:
        length: tokens in the text, >= 0.
        density: fraction of masked tokens; 0 masks nothing.
        mean_span: mean tokens per masked span.
        rng: `np.random.Generator` or `np.random.RandomState`.

    Returns:
        bool [length], True where masked.
    """

    def shuffled(items: int, segments: int) -> IntArray:
        is_cut = np.arange(items - 1) < segments - 1
        rng.shuffle(is_cut)
        return is_cut.nonzero()[0][None] + 1

    return _masks(length, density, mean_span, 1, shuffled)[0]


def random_spans_masks(
    texts: int, length: int, density: float, mean_span: float, rng: np.random.Generator
) -> BoolArray:
    """Independent masks of `texts` texts of one length, each distributed as that of `random_spans_mask`.

    Drawn together, at a fraction of the time of two shuffles for each.

    Returns:
        bool [texts, length], True where masked; all rows have as many masked tokens and as many spans.
    """

    def drawn(items: int, segments: int) -> IntArray:
        if segments == 1:
            return np.empty((texts, 0), np.int64)
        # The places of the smallest of independent uniform numbers: every set of places is as likely. The last bits
        # make the numbers differ.
        numbers = rng.integers(2**64, size=(texts, items - 1), dtype=np.uint64)
        numbers <<= np.uint64(items.bit_length())
        numbers |= np.arange(items - 1, dtype=np.uint64)
        is_cut = numbers <= np.partition(numbers, segments - 2, axis=1)[:, segments - 2 : segments - 1]
        places = np.flatnonzero(is_cut).reshape(texts, segments - 1)
        return places - np.arange(texts)[:, None] * (items - 1) + 1

    return _masks(length, density, mean_span, texts, drawn)


def _masks(
    length: int, density: float, mean_span: float, texts: int, cuts: Callable[[int, int], IntArray]
) -> BoolArray:
    """Masks, bool [texts, length]; `cuts(items, segments)` gives where a line of items is cut into that many segments,
    int [texts, segments - 1], ascending and within [1, items)."""
    if density == 0.0:
        return np.zeros((texts, length), np.bool_)
    # T5 lengthens degenerate texts to two tokens, and cuts the mask back.
    padded = max(length, 2)
    noise, spans = noise_counts(padded, density, mean_span)
    ends = np.empty((2, texts, spans + 1), np.int64)  # of masked and of kept spans, each set end to end
    for own, items in zip(ends, (noise, padded - noise), strict=True):
        own[:, 0], own[:, 1:-1], own[:, -1] = 0, cuts(items, spans), items
    # Each masked span has one more kept span before it than masked ones.
    rows = np.arange(texts)[:, None] * padded
    changes = np.zeros(texts * padded, np.int8)
    changes[ends[0, :, :-1] + ends[1, :, 1:] + rows] = 1
    changes[ends[0, :, 1:-1] + ends[1, :, 1:-1] + rows] = -1
    return changes.reshape(texts, padded).cumsum(axis=1, dtype=np.int8).view(np.bool_)[:, :length]


def _replace_spans(tokens: IntArray, inside: BoolArray, first_sentinel_id: int, eos_id: int) -> IntArray:
    """Replaces each run of `inside` in each row by one descending sentinel, and appends EOS."""
    start = inside.copy()
    start[:, 1:] &= ~inside[:, :-1]
    kept = start | ~inside
    texts, spans = len(tokens), int(start[0].sum())
    out = tokens[kept]
    out[start[kept]] = np.tile(np.arange(first_sentinel_id, first_sentinel_id - spans, -1), texts)
    ended = np.empty((texts, len(out) // texts + 1), tokens.dtype)
    ended[:, :-1], ended[:, -1] = out.reshape(texts, -1), eos_id
    return ended


def corrupt(tokens: IntArray, mask: BoolArray, first_sentinel_id: int, eos_id: int) -> tuple[IntArray, IntArray]:
    """Inputs and targets of masked texts.

    Inputs keep the unmasked tokens and put one sentinel in place of each masked span. Targets mirror them (T5): the
    masked tokens, and one sentinel in place of each kept span. A mask of `random_spans_masks` starts kept and ends
    masked, so each masked span follows its sentinel and no sentinel closes the targets.

    Args:
        tokens: int [texts, length], texts >= 1, without EOS.
        mask: bool [texts, length], True where masked; rows with equal numbers of masked tokens and of spans.
        first_sentinel_id: id of a text's first sentinel; the following ones descend by 1.
        eos_id: appended once to inputs and once to targets.

    Returns:
        (inputs, targets), int [texts, …], of the dtype of `tokens`, without padding.

    Raises:
        ValueError: the shapes differ, or the rows' masked tokens or spans do.
    """
    if tokens.shape != mask.shape:
        raise ValueError(f"a mask of shape {mask.shape} does not fit texts of shape {tokens.shape}")
    inputs = _replace_spans(tokens, mask, first_sentinel_id, eos_id)
    targets = _replace_spans(tokens, ~mask, first_sentinel_id, eos_id)
    return inputs, targets


def check_sentinels(inputs_length: int, density: float, mean_span: float, num_sentinels: int = NUM_SENTINELS) -> None:
    """Refuses a setting whose full-length examples need more sentinels than the vocabulary has.

    Raises:
        ValueError: naming data.inputs_length, the sentinels it needs and the largest length that fits.
    """

    def needed(length: int) -> int:
        raw, _ = raw_and_target_lengths(length, density, mean_span)
        return noise_counts(max(raw, 2), density, mean_span)[1]

    if needed(inputs_length) <= num_sentinels:
        return
    low, high = 2, inputs_length
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needed(middle) <= num_sentinels else (low, middle)
    raise ValueError(
        f"data.inputs_length = {inputs_length} needs {needed(inputs_length)} sentinels, the vocabulary has "
        f"{num_sentinels}: set data.inputs_length to at most {low}, or raise data.mean_noise_span_length "
        f"(now {mean_span})"
    )
