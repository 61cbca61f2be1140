"""Text-to-text tasks as an objective: pairs of texts become inputs and labels.

Shape suffixes: L inputs_length, T targets_length.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.objectives.base import IGNORED_LABEL
from data.tokenizer import Tokenizer


class EncodedPair(NamedTuple):
    """An example of fixed shape, and what was cut off it."""

    inputs_L: NDArray[np.int32]  # padded with the pad id
    labels_T: NDArray[np.int32]  # padded with IGNORED_LABEL
    cut_inputs: bool
    cut_targets: bool


class TextToText:
    """Encodes (inputs, targets); neither shares its sequence with other examples (no packing).

    A text beyond its length is cut at its end and still ends with EOS, as T5 does (``append_eos_after_trim`` of seqio).
    With ``data.sentinels`` the first sentinel follows the inputs and precedes the targets (Zoph et al. 2022, section
    4.5; ``add_task_with_sentinels`` of seqio); a text is cut in front of it.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer) -> None:
        self.inputs_length = self.raw_length = config.inputs_length
        self.targets_length = config.targets_length
        self._tokenizer = tokenizer
        self._sentinel = [tokenizer.first_sentinel_id] if config.sentinels else []

    def encode(self, inputs: str, targets: str) -> EncodedPair:
        """Return the example of a pair of texts."""
        tokenizer = self._tokenizer
        of_inputs, of_targets = tokenizer.encode_batch([inputs, targets])
        room_L, room_T = (length - 1 - len(self._sentinel) for length in (self.inputs_length, self.targets_length))
        inputs_L = np.full(self.inputs_length, tokenizer.pad_id, np.int32)
        labels_T = np.full(self.targets_length, IGNORED_LABEL, np.int32)
        ids = [*of_inputs[:room_L], *self._sentinel, tokenizer.eos_id]
        inputs_L[: len(ids)] = ids
        ids = [*self._sentinel, *of_targets[:room_T], tokenizer.eos_id]
        labels_T[: len(ids)] = ids
        return EncodedPair(inputs_L, labels_T, len(of_inputs) > room_L, len(of_targets) > room_T)

    def count(self, encoded: EncodedPair) -> int:
        """Return the real tokens of an example, EOS and sentinels included."""
        pad = self._tokenizer.pad_id
        return int((encoded.inputs_L != pad).sum() + (encoded.labels_T != IGNORED_LABEL).sum())

    def nothing(self) -> EncodedPair:
        """Return padding alone, which fills a batch: it is routed nowhere and has no target."""
        inputs_L = np.full(self.inputs_length, self._tokenizer.pad_id, np.int32)
        return EncodedPair(inputs_L, np.full(self.targets_length, IGNORED_LABEL, np.int32), False, False)
