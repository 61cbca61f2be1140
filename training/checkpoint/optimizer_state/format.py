"""The interface between checkpoints and the state of one kind of optimizer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from common.text import counted
from optim.partition import Partition
from training.checkpoint.store.layout import ParallelLayout
from training.config.errors import ConfigError

Tensors = dict[str, Tensor]


class StateFormat(ABC):
    """How the state of an optimizer is kept beside the master weights.

    Args:
        name: of the optimizer in the configuration.
    """

    #: Whether the state is one number per weight, which rank files hold beside the weight itself.
    in_rank_files = False

    def __init__(self, name: str):
        self.name = name

    @abstractmethod
    def write(self, optimizer: Optimizer, partitions: Sequence[Partition], rank: int) -> dict[str, Tensors]:
        """Return this rank's files beside its rank file: file name → its tensors, which may be views."""

    @abstractmethod
    def read(self, optimizer: Optimizer, partitions: Sequence[Partition], folder: Path, rank: int) -> None:
        """Restore what ``write`` returned on all ranks.

        Raises:
            ValueError: a file is missing or damaged, or the state belongs to another model or optimizer.
        """

    def describe(self, files: Mapping[str, Tensors]) -> Any:
        """Return what the index needs to know of this rank's files, as JSON values.

        Args:
            files: from ``write``.
        """
        return None

    def index(self, described: Sequence[Any]) -> dict[str, str]:
        """Return the text files that rank 0 adds: file name → content.

        Args:
            described: by ``describe``, of each rank.

        Raises:
            ValueError: the ranks' files do not make up the state.
        """
        return {}

    def fits(self, saved: ParallelLayout, present: ParallelLayout) -> None:
        """Check that state written at one layout can be read at another; by default any fits. Raises ConfigError."""
        return

    def is_layout_free(self, file: str) -> bool:
        """Return whether a file of a checkpoint belongs to this format and is the same at every layout."""
        return False


class ElementState(StateFormat):
    """AdamW: one number per weight and state, all of it in the rank files."""

    in_rank_files = True

    def write(self, optimizer: Optimizer, partitions: Sequence[Partition], rank: int) -> dict[str, Tensors]:
        """Return nothing: see ``rank_file``."""
        return {}

    def read(self, optimizer: Optimizer, partitions: Sequence[Partition], folder: Path, rank: int) -> None:
        """Do nothing: see ``rank_file``."""


def refuse_other_layout(name: str, saved: ParallelLayout, present: ParallelLayout) -> None:
    """Raise ConfigError unless world size, expert-parallel size and ZeRO stage are those of the checkpoint."""
    if saved.shape != present.shape:
        size, world, stage = saved.shape
        raise ConfigError(
            f"optimizer.name = {name} keeps its state in blocks of a rank's partition: resume with "
            f"parallel.expert_parallel_size = {size}, {counted(world, 'rank')} and ZeRO {stage}"
        )
