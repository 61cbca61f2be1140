"""The interface of a pretraining objective.

Shape suffixes: N tokens of a pack, C chunks of it, L inputs_length, T targets_length.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

IGNORED_LABEL = -100  # equals model.losses.IGNORED_LABEL: packages data and model do not import each other

Examples = tuple[NDArray[np.int32], NDArray[np.int32]]


class Objective(Protocol):
    """Turns the tokens of a pack into (inputs, labels) of fixed shape.

    Attributes:
        raw_length: tokens of a full chunk.
        targets_length: target tokens per example, EOS included.
    """

    raw_length: int
    targets_length: int

    def examples(self, tokens_N: NDArray[np.int32], rng: np.random.Generator) -> Examples:
        """Cut a pack into chunks of ``raw_length`` tokens, the last one possibly shorter, and corrupt each.

        Args:
            tokens_N: int32, without EOS.
            rng: generator for this pack only.

        Returns:
            inputs_CL int32, padded with the pad id; labels_CT int32, padded with ``IGNORED_LABEL``.
        """
        ...
