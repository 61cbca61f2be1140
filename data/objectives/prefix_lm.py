"""T5's prefix language modelling.

Shape suffixes: N tokens of a pack, P pieces of it, R raw tokens of a full piece, L inputs_length, T targets_length.
"""

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.objectives.base import IGNORED_LABEL, Examples
from data.tokenizer import Tokenizer


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
