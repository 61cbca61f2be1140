"""T5's span corruption as an objective.

Shape suffixes: N tokens of a pack, P pieces of it, R raw tokens of a full piece, L inputs_length, T targets_length.
"""

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.objectives.base import IGNORED_LABEL, Examples
from data.span_corruption import IntArray, check_sentinels, corrupt, random_spans_masks, raw_and_target_lengths
from data.tokenizer import Tokenizer


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
