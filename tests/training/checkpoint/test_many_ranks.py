"""Layouts of many ranks in one process: each rank gets back its own, and reads no byte more than it keeps."""

import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.many_ranks.cluster import Cluster, fake_optimizer
from benchmarks.many_ranks.loading import bytes_held, bytes_read
from benchmarks.many_ranks.saved import gather
from optim.adafactor import Adafactor
from optim.partition import Partition
from optim.partition_state import read_fragment_name
from tests.support.small import TWO_BLOCKS, small_config
from training.checkpoint.capture import write_rest
from training.checkpoint.optimizer_state.registry import state_format
from training.checkpoint.rank_file import rank_contents, read_elements
from training.checkpoint.store.index import WEIGHT, TensorReader, rank_file_name
from training.checkpoint.store.layout import ParallelLayout
from training.checkpoint.store.tensor_file import write_tensors

LAYOUTS = [
    ParallelLayout(4, 8, 3, "fp32"),
    ParallelLayout(2, 6, 1, "fp32"),
    ParallelLayout(1, 2, 3, "fp32"),
]


def expected(name: str, start: int, stop: int) -> Tensor:
    """Elements of a tensor that every name has its own of."""
    return torch.arange(start, stop, dtype=torch.float32) + zlib.crc32(name.encode()) % 9973


def held(partitions: list[Partition], optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, int, int, Tensor]]:
    """What a rank holds: name, start, stop, and the elements themselves."""
    for partition in partitions:
        for segment in partition.held():
            states = {WEIGHT: partition.tensor} | {
                name: value for name, value in optimizer.state.get(partition.tensor, {}).items() if value.dim()
            }
            for state, tensor in states.items():
                yield (
                    f"{segment.spec.name}/{state}", segment.elements.start, segment.elements.stop,
                    segment.view(tensor.view(-1)),
                )  # fmt: skip
    if isinstance(optimizer, Adafactor):
        for partition_state in optimizer.partition_states.values():
            # A rank that is not the first of its group saves no rows and columns; it holds them all the same.
            first = replace(partition_state.partition, group_rank=0)
            partition_state.partition, own = first, partition_state.partition
            for name, tensor in partition_state.named_state():
                whole, start, stop = read_fragment_name(name) or (name, 0, tensor.numel())
                yield whole, start, stop, tensor
            partition_state.partition = own


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_every_layout_reads_what_any_other_wrote(name: str, tmp_path: Path):
    config = small_config(tmp_path, model=TWO_BLOCKS | {"d_model": 32}, optimizer={"name": name})
    clusters = [Cluster.of(config.st_moe_config(), layout) for layout in LAYOUTS]
    for writer in clusters[:2]:
        folder = tmp_path / str(writer.layout)
        folder.mkdir()
        save(writer, name, folder)
        gathered = gather(writer, config)
        write_rest(gathered.captured, folder, gathered.records)
        for reader in clusters:
            for rank in range(reader.layout.world_size):
                load(replace(reader, device="cpu"), rank, name, folder)
                counter = 8 if name == "adafactor" else 0
                read = bytes_read(reader, rank, name, folder, gathered.shapes).total()
                assert read == bytes_held(reader, rank, name) + counter


def save(cluster: Cluster, name: str, folder: Path) -> None:
    """Write the files of all ranks."""
    state_files = state_format(name)
    for rank in range(cluster.layout.world_size):
        partitions = replace(cluster, device="cpu").partitions(rank)
        optimizer = fake_optimizer(name, partitions)
        for whole, start, stop, tensor in held(partitions, optimizer):
            tensor.copy_(expected(whole, start, stop))
        _, tensors = rank_contents(optimizer, partitions, with_state=state_files.in_rank_files)
        files = {rank_file_name(rank, cluster.layout.world_size): tensors}
        for file, of_file in (files | state_files.write(optimizer, partitions, rank)).items():
            write_tensors(folder / file, of_file)


def load(cluster: Cluster, rank: int, name: str, folder: Path) -> None:
    """Read what a rank holds, and compare it."""
    partitions = cluster.partitions(rank)
    optimizer = fake_optimizer(name, partitions)
    read_elements(optimizer, partitions, TensorReader(folder))
    state_format(name).read(optimizer, partitions, folder, rank)
    found = list(held(partitions, optimizer))
    assert found
    for whole, start, stop, tensor in found:
        assert torch.equal(tensor, expected(whole, start, stop)), (whole, cluster.layout, rank)
