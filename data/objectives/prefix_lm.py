"""Prefix language modeling as an objective.

Shape suffixes: N tokens of a pack, C chunks of it, L inputs_length, T targets_length.
"""

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.objectives.base import IGNORED_LABEL, Examples
from data.tokenizer import Tokenizer


class PrefixLm:
    """T5's prefix language modeling objective (Raffel et al. 2020, section 3.3.1; ``prefix_lm`` in the T5 code).

    A chunk of up to inputs_length - 1 tokens is split after a number of tokens drawn uniformly from [1, its length):
    the first part becomes the inputs, the rest the targets, each with EOS and without sentinels. T5 cuts its chunks
    from single documents, this project cuts them from packs, as for span corruption.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer) -> None:
        self.raw_length = config.inputs_length - 1
        self.targets_length = config.inputs_length - 1  # at most raw_length - 1 tokens, and EOS
        self._inputs_length = config.inputs_length
        self._tokenizer = tokenizer

    def examples(self, tokens_N: NDArray[np.int32], rng: np.random.Generator) -> Examples:
        """See ``Objective``. A chunk of one token gives empty inputs, as in T5."""
        chunks = -(-len(tokens_N) // self.raw_length)
        inputs_CL = np.full((chunks, self._inputs_length), self._tokenizer.pad_id, np.int32)
        labels_CT = np.full((chunks, self.targets_length), IGNORED_LABEL, np.int32)
        for i in range(chunks):
            chunk = tokens_N[i * self.raw_length : (i + 1) * self.raw_length]
            split = int(rng.integers(1, len(chunk))) if len(chunk) > 1 else 0
            inputs_CL[i, :split] = chunk[:split]
            inputs_CL[i, split] = self._tokenizer.eos_id
            labels_CT[i, : len(chunk) - split] = chunk[split:]
            labels_CT[i, len(chunk) - split] = self._tokenizer.eos_id
        return inputs_CL, labels_CT
