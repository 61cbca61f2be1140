"""Pretraining objectives: from the tokens of a pack to (inputs, labels) of fixed shape.

Shape suffixes: N tokens of a pack, P pieces of it, R raw tokens of a full piece, L inputs_length, T targets_length.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.span_corruption import IntArray, check_sentinels, corrupt, random_spans_masks, raw_and_target_lengths
from data.tokenizer import Tokenizer

IGNORED_LABEL = -100

Examples = tuple[NDArray[np.int32], NDArray[np.int32]]


class Objective(Protocol):
    """What a model is to learn from raw text."""

    raw_length: int
    targets_length: int

    def examples(self, tokens_N: NDArray[np.int32], rng: np.random.Generator) -> Examples:
        """The examples of a pack, which is cut every `raw_length` tokens; the last piece may be shorter.

        Args:
            tokens_N: int32, without EOS.
            rng: of this pack alone.

        Returns:
            inputs_PL int32, padded with pad; labels_PT int32, padded with -100.
        """
        ...


def make_objective(config: DataConfig, tokenizer: Tokenizer) -> Objective:
    """The objective of the config.

    Raises:
        ValueError: the examples need more sentinels than the vocabulary has.
    """
    return PrefixLm(config, tokenizer) if config.objective == "prefix_lm" else SpanCorruption(config, tokenizer)


class SpanCorruption:
    """T5's denoising objective (Raffel et al. 2020, section 3.1.4); see `data.span_corruption`."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer) -> None:
        self._density, self._mean_span = config.noise_density, config.mean_noise_span_length
        check_sentinels(config.inputs_length, self._density, self._mean_span, tokenizer.num_sentinels)
        self.raw_length, self.targets_length = raw_and_target_lengths(
            config.inputs_length, self._density, self._mean_span
        )
        self._inputs_length = config.inputs_length
        self._tokenizer = tokenizer

    def examples(self, tokens_N: NDArray[np.int32], rng: np.random.Generator) -> Examples:
        """See `Objective`. Full pieces are corrupted together: half the time of one after the other."""
        pieces = -(-len(tokens_N) // self.raw_length)
        inputs_PL = np.full((pieces, self._inputs_length), self._tokenizer.pad_id, np.int32)
        labels_PT = np.full((pieces, self.targets_length), IGNORED_LABEL, np.int32)
        full = len(tokens_N) // self.raw_length
        whole, rest = tokens_N[: full * self.raw_length], tokens_N[full * self.raw_length :]
        for tokens_PR, rows in (
            (whole.reshape(full, self.raw_length), slice(0, full)),
            (rest.reshape(1, -1), slice(full, None)),
        ):
            if tokens_PR.size:
                masks_PR = random_spans_masks(*tokens_PR.shape, self._density, self._mean_span, rng)
                ids = self._tokenizer.first_sentinel_id, self._tokenizer.eos_id
                inputs, targets = corrupt(tokens_PR, masks_PR, *ids)
                _fill(inputs_PL[rows], inputs)
                _fill(labels_PT[rows], targets)
        return inputs_PL, labels_PT


def _fill(out: IntArray, ids: IntArray) -> None:
    """Cuts before the EOS, as T5 does: at a few lengths float32 rounding masks one token more than was planned."""
    length = min(ids.shape[1], out.shape[1])
    out[:, : length - 1] = ids[:, : length - 1]
    out[:, length - 1] = ids[:, -1]


class PrefixLm:
    """T5's prefix language modelling objective (Raffel et al. 2020, section 3.3.1; `prefix_lm` of the T5 code).

    A piece of up to inputs_length - 1 tokens is split after a number of tokens drawn uniformly from [1, its length):
    inputs are those, targets are the others, each with EOS and no sentinel. T5 takes its pieces from single documents,
    this project from packs of them, as for span corruption.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer) -> None:
        self.raw_length = config.inputs_length - 1
        self.targets_length = config.inputs_length - 1  # one token less than the piece, and EOS
        self._inputs_length = config.inputs_length
        self._tokenizer = tokenizer

    def examples(self, tokens_N: NDArray[np.int32], rng: np.random.Generator) -> Examples:
        """See `Objective`. A piece of one token has empty inputs, as in T5."""
        pieces = -(-len(tokens_N) // self.raw_length)
        inputs_PL = np.full((pieces, self._inputs_length), self._tokenizer.pad_id, np.int32)
        labels_PT = np.full((pieces, self.targets_length), IGNORED_LABEL, np.int32)
        for i in range(pieces):
            piece = tokens_N[i * self.raw_length : (i + 1) * self.raw_length]
            split = int(rng.integers(1, len(piece))) if len(piece) > 1 else 0
            inputs_PL[i, :split] = piece[:split]
            inputs_PL[i, split] = self._tokenizer.eos_id
            labels_PT[i, : len(piece) - split] = piece[split:]
            labels_PT[i, len(piece) - split] = self._tokenizer.eos_id
        return inputs_PL, labels_PT
