"""Optimizer state that loads only at the layout it was written at, one file per rank.

bitsandbytes quantizes moments in blocks of a rank's partition: at another layout the blocks are different ones.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.optim import Optimizer

from optim.partition import Partition
from training.checkpoint.optimizer_state.format import StateFormat, Tensors, refuse_other_layout
from training.checkpoint.store.layout import ParallelLayout


class RankState(StateFormat):
    """Everything in ``optimizer.state``, under the number of the partition and the name of the state."""

    def write(self, optimizer: Optimizer, partitions: Sequence[Partition], rank: int) -> dict[str, Tensors]:
        """Return one file with all of this rank's state; plain numbers as 0-d tensors."""
        tensors = {
            f"{i}/{name}": torch.as_tensor(value)
            for i, partition in enumerate(_with_elements(partitions))
            for name, value in optimizer.state[partition.tensor].items()
        }
        return {_file(rank): tensors}

    def read(self, optimizer: Optimizer, partitions: Sequence[Partition], folder: Path, rank: int) -> None:
        """Restore this rank's state, for the same partitions in the same order."""
        path = folder / _file(rank)
        try:
            saved = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
        for key, value in saved.items():
            number, _, name = key.partition("/")
            tensor = _with_elements(partitions)[int(number)].tensor
            is_count = value.dim() == 0 and not value.is_floating_point()
            optimizer.state[tensor][name] = value.item() if is_count else value.to(tensor.device)

    def fits(self, saved: ParallelLayout, present: ParallelLayout) -> None:
        """Refuse any other layout. Raises ConfigError."""
        refuse_other_layout(self.name, saved, present)


def _with_elements(partitions: Sequence[Partition]) -> list[Partition]:
    return [partition for partition in partitions if any(partition.held())]


def _file(rank: int) -> str:
    return f"rank-state-{rank:05d}.safetensors"
