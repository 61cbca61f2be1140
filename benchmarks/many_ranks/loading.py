"""What a rank reads of a checkpoint, counted by the functions that load it, without reading any tensor."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.many_ranks.cluster import Cluster, fake_optimizer
from benchmarks.many_ranks.saved import meta_like
from optim.adafactor import Adafactor
from training.checkpoint.optimizer_state.adafactor import SavedState
from training.checkpoint.rank_file import read_elements
from training.checkpoint.store.index import TensorReader


class CountingReader(TensorReader):
    """Counts bytes by file.

    Attributes:
        nbytes: file → bytes of the elements that were asked for.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.nbytes: Counter[str] = Counter()

    def read(self, name: str, state: str, start: int, stop: int) -> Tensor:
        """See ``TensorReader``; on the meta device."""
        dtype = self.index.dtype(state)
        for stored in self.index.stored(name, start, stop):
            self.nbytes[stored.file] += (min(stop, stored.stop) - max(start, stored.start)) * dtype.itemsize
        return torch.empty(stop - start, dtype=dtype, device="meta")


class CountingState(SavedState):
    """Counts bytes by file, as ``CountingReader`` does.

    Args:
        folder: of the checkpoint.
        shapes: of all tensors, by name.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, tuple[int, ...]]):
        super().__init__(folder)
        self.shapes, self.nbytes = shapes, Counter[str]()

    def read(self, file: str, name: str, part: slice | None = None) -> Tensor:
        """See ``SavedState``; on the meta device."""
        tensor = torch.tensor(1) if name == "step" else meta_like(self.shapes[name])
        tensor = tensor if part is None else tensor[part]
        self.nbytes[file] += tensor.nbytes
        return tensor


def bytes_read(
    cluster: Cluster, rank: int, optimizer: str, folder: Path, shapes: Mapping[str, tuple[int, ...]]
) -> Counter[str]:
    """Return the bytes of tensors that a rank reads of each file of a checkpoint, at the layout of ``cluster``.

    Args:
        cluster: that loads; on the meta device.
        rank: of it.
        optimizer: ``optimizer.name``.
        folder: of the checkpoint.
        shapes: see ``CountingState``.
    """
    partitions = cluster.partitions(rank)
    fake = fake_optimizer(optimizer, partitions)
    reader = CountingReader(folder)
    read_elements(fake, partitions, reader)
    if not isinstance(fake, Adafactor):
        return reader.nbytes
    state = CountingState(folder, shapes)
    fake.load_named_state(state, state.fragments)
    return reader.nbytes + state.nbytes


def bytes_held(cluster: Cluster, rank: int, optimizer: str) -> int:
    """Return the bytes of master weights and optimizer state of a rank, without the padding of its partitions."""
    partitions = cluster.partitions(rank)
    numel = sum(segment.numel for partition in partitions for segment in partition.held())
    fake = fake_optimizer(optimizer, partitions)
    return numel * 4 + fake.state_nbytes if isinstance(fake, Adafactor) else numel * 12
