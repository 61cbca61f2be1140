"""T5 span corruption in numpy: draws the noise mask and builds inputs and targets from it.

Source: the published T5 code (google-research/text-to-text-transfer-transformer, t5/data/preprocessors.py:
``random_spans_helper``, ``random_spans_noise_mask``, ``noise_span_to_unique_sentinel``).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

NUM_SENTINELS = 100

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.integer]
Rng = np.random.Generator | np.random.RandomState


def raw_and_target_lengths(inputs_length: int, density: float, mean_span: float) -> tuple[int, int]:
    """Return the longest raw length that fits ``inputs_length`` after corruption, and its target length.

    Inputs and targets each hold one sentinel per span and one EOS: 512 -> (568, 114) at density 0.15, mean span 3.
    Source: T5 ``random_spans_helper``, including its float64 arithmetic and its special case for density 0.5.

    Args:
        inputs_length: encoder tokens, EOS included.
        density: fraction of tokens to mask, in [0, 1).
        mean_span: mean length of a masked span, in tokens.

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
    """Return (masked tokens, masked spans) for a text of ``length`` >= 2 tokens, rounded in float32 as T5 does."""
    noise = int(np.rint(np.float32(length) * np.float32(density)))
    noise = min(max(noise, 1), length - 1)
    spans = int(np.rint(np.float32(noise) / np.float32(mean_span)))
    # Each span needs a masked token and a kept token before it; at high density the kept tokens are the limit.
    return noise, min(max(spans, 1), noise, length - noise)


def random_spans_mask(length: int, density: float, mean_span: float, rng: Rng) -> BoolArray:
    """Draw a mask of random spans for one text; kept and masked spans alternate, the first kept, the last masked.

    Draws like the published code: two shuffles, that of the masked lengths first, so another implementation that
    shuffles the same arrays in the same order gives the same mask. A text of one token is not masked: T5 draws the mask
    of two tokens and truncates it.

    Args:
        length: tokens in the text, >= 0.
        density: fraction of tokens to mask; 0 masks nothing.
        mean_span: mean length of a masked span, in tokens.
        rng: ``np.random.Generator`` or ``np.random.RandomState``.

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
    """Draw independent masks for ``texts`` texts of equal length, each distributed as in ``random_spans_mask``.

    Vectorized over texts: takes a fraction of the time of two shuffles per text.

    Returns:
        bool [texts, length], True where masked; all rows have the same number of masked tokens and of spans.
    """

    def drawn(items: int, segments: int) -> IntArray:
        if segments == 1:
            return np.empty((texts, 0), np.int64)
        # Cut at the indices of the smallest of independent uniform numbers: all sets of indices are equally likely.
        # The low bits hold the index, so that no two numbers are equal.
        numbers = rng.integers(2**64, size=(texts, items - 1), dtype=np.uint64)
        numbers <<= np.uint64(items.bit_length())
        numbers |= np.arange(items - 1, dtype=np.uint64)
        is_cut = numbers <= np.partition(numbers, segments - 2, axis=1)[:, segments - 2 : segments - 1]
        indices = np.flatnonzero(is_cut).reshape(texts, segments - 1)
        return indices - np.arange(texts)[:, None] * (items - 1) + 1

    return _masks(length, density, mean_span, texts, drawn)


def _masks(
    length: int, density: float, mean_span: float, texts: int, cuts: Callable[[int, int], IntArray]
) -> BoolArray:
    """Build masks, bool [texts, length], from random cuts.

    Args:
        cuts: ``cuts(items, segments)`` returns where to cut a sequence of ``items`` tokens into ``segments`` segments,
            int [texts, segments - 1], ascending and within [1, items).
    """
    if density == 0.0:
        return np.zeros((texts, length), np.bool_)
    # T5 pads texts of less than two tokens to two and truncates the mask.
    padded = max(length, 2)
    noise, spans = noise_counts(padded, density, mean_span)
    ends = np.empty((2, texts, spans + 1), np.int64)  # of the masked and of the kept spans, each concatenated
    for own, items in zip(ends, (noise, padded - noise), strict=True):
        own[:, 0], own[:, 1:-1], own[:, -1] = 0, cuts(items, spans), items
    # Masked span i starts after i masked and i + 1 kept spans.
    rows = np.arange(texts)[:, None] * padded
    changes = np.zeros(texts * padded, np.int8)
    changes[ends[0, :, :-1] + ends[1, :, 1:] + rows] = 1
    changes[ends[0, :, 1:-1] + ends[1, :, 1:-1] + rows] = -1
    return changes.reshape(texts, padded).cumsum(axis=1, dtype=np.int8).view(np.bool_)[:, :length]


def _replace_spans(tokens: IntArray, inside: BoolArray, first_sentinel_id: int, eos_id: int) -> IntArray:
    """Replace each run of ``inside`` in each row by one sentinel, descending, and append EOS."""
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
    """Build inputs and targets from masked texts.

    Inputs are the unmasked tokens, with one sentinel for each masked span. Targets mirror them (T5): the masked tokens,
    with one sentinel for each kept span. A mask of ``random_spans_masks`` starts with a kept and ends with a masked
    span, so each masked span follows its sentinel and no sentinel closes the targets.

    Args:
        tokens: int [texts, length], texts >= 1, without EOS.
        mask: bool [texts, length], True where masked; rows with equal numbers of masked tokens and of spans.
        first_sentinel_id: id of a text's first sentinel; later ones descend by 1.
        eos_id: appended once to inputs and once to targets.

    Returns:
        (inputs, targets), int [texts, …], with the dtype of ``tokens`` and without padding.

    Raises:
        ValueError: the shapes differ, or the rows differ in masked tokens or spans.
    """
    if tokens.shape != mask.shape:
        raise ValueError(f"a mask of shape {mask.shape} does not fit texts of shape {tokens.shape}")
    inputs = _replace_spans(tokens, mask, first_sentinel_id, eos_id)
    targets = _replace_spans(tokens, ~mask, first_sentinel_id, eos_id)
    return inputs, targets


def check_sentinels(inputs_length: int, density: float, mean_span: float, num_sentinels: int = NUM_SENTINELS) -> None:
    """Check that the vocabulary has enough sentinels for full-length examples.

    Raises:
        ValueError: too few sentinels; names ``data.inputs_length``, the sentinels needed and the largest length that
            fits.
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
