"""Pretraining objectives: from the tokens of a pack to (inputs, labels) of fixed shape.

Shape suffixes: N tokens of a pack, P pieces of it, R raw tokens of a full piece, L inputs_length, T targets_length.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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
