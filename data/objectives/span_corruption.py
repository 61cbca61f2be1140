"""Span corruption as an objective: masks, inputs and labels for all chunks of a pack.

Shape suffixes: N tokens of a pack, C chunks of it, F chunks corrupted together, R raw tokens of each of these, L
inputs_length, T targets_length.
"""

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.objectives.base import IGNORED_LABEL, Examples
from data.span_corruption import IntArray, check_sentinels, corrupt, random_spans_masks, raw_and_target_lengths
from data.tokenizer import Tokenizer


class SpanCorruption:
    """T5's denoising objective (Raffel et al. 2020, section 3.1.4); see ``data.span_corruption``.

    Raises:
        ValueError: full-length examples need more sentinels than the vocabulary has.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer) -> None:
        self._density, self._mean_span = config.noise_density, config.mean_noise_span_length
        check_sentinels(config.inputs_length, self._density, self._mean_span, tokenizer.num_sentinels)
        self.raw_length, self.targets_length = raw_and_target_lengths(
            config.inputs_length, self._density, self._mean_span
        )
        self._inputs_length = config.inputs_length
        self._tokenizer = tokenizer

    def examples(self, tokens_N: NDArray[np.int32], rng: np.random.Generator) -> Examples:
        """See ``Objective``. All full chunks are corrupted together, in half the time of one by one."""
        chunks = -(-len(tokens_N) // self.raw_length)
        inputs_CL = np.full((chunks, self._inputs_length), self._tokenizer.pad_id, np.int32)
        labels_CT = np.full((chunks, self.targets_length), IGNORED_LABEL, np.int32)
        full = len(tokens_N) // self.raw_length
        head, tail = tokens_N[: full * self.raw_length], tokens_N[full * self.raw_length :]
        for tokens_FR, rows in (
            (head.reshape(full, self.raw_length), slice(0, full)),
            (tail.reshape(1, -1), slice(full, None)),
        ):
            if tokens_FR.size:
                masks_FR = random_spans_masks(*tokens_FR.shape, self._density, self._mean_span, rng)
                inputs, targets = corrupt(
                    tokens_FR, masks_FR, self._tokenizer.first_sentinel_id, self._tokenizer.eos_id
                )
                _copy_truncated(inputs, inputs_CL[rows])
                _copy_truncated(targets, labels_CT[rows])
        return inputs_CL, labels_CT


def _copy_truncated(ids: IntArray, out: IntArray) -> None:
    """Copy rows of ids to ``out``, truncated before the EOS as in T5.

    At a few lengths float32 rounding masks one token more than the float64 arithmetic of the lengths allows for.
    """
    length = min(ids.shape[1], out.shape[1])
    out[:, : length - 1] = ids[:, : length - 1]
    out[:, length - 1] = ids[:, -1]
