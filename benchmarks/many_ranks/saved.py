"""The metadata of a checkpoint of many ranks, made by the functions of a run; the tensor files are empty files."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.many_ranks.cluster import STEPS, Cluster, fake_optimizer
from common.strict_json import to_json
from training.checkpoint.capture import Capture, RankMeta, write_rest
from training.checkpoint.optimizer_state.registry import state_format
from training.checkpoint.rank_file import rank_contents
from training.checkpoint.store.index import rank_file_name
from training.checkpoint.store.manifest import FileRecord
from training.checkpoint.store.state import SavedState
from training.checkpoint.store.tensor_file import DTYPES
from training.config.run import RunConfig


class Gathered(NamedTuple):
    """What rank 0 has of all ranks at a save.

    Attributes:
        captured: of rank 0.
        records: of all tensor files.
        shapes: of the tensors of the optimizer's own files, by name.
        headers: bytes of each tensor file's header.
    """

    captured: Capture
    records: list[FileRecord]
    shapes: dict[str, tuple[int, ...]]
    headers: dict[str, int]


def gather(cluster: Cluster, config: RunConfig) -> Gathered:
    """Return what the ranks of a cluster give rank 0, as ``capture`` and ``write_files`` do."""
    world_size = cluster.layout.world_size
    state_files = state_format(config.optimizer.name)
    metas: list[RankMeta] = []
    records: list[FileRecord] = []
    shapes: dict[str, tuple[int, ...]] = {}
    headers: dict[str, int] = {}
    for rank in range(world_size):
        partitions = cluster.partitions(rank)
        optimizer = fake_optimizer(config.optimizer.name, partitions)
        contents, tensors = rank_contents(optimizer, partitions, with_state=state_files.in_rank_files)
        extra = state_files.write(optimizer, partitions, rank)
        metas.append(RankMeta(contents, _data(config, rank, world_size), state_files.describe(extra)))
        for file, of_file in ({rank_file_name(rank, world_size): tensors} | extra).items():
            headers[file] = header_bytes(of_file)
            nbytes = headers[file] + sum(tensor.nbytes for tensor in of_file.values())
            records.append(FileRecord(file, nbytes, f"{len(records):064x}"))
        shapes |= {name: tuple(tensor.shape) for of_file in extra.values() for name, tensor in of_file.items()}
    captured = Capture({}, _state(config, cluster), metas[0], [meta.pack() for meta in metas])
    return Gathered(captured, records, shapes, headers)


def write(gathered: Gathered, folder: Path) -> None:
    """Write the metadata into ``folder``, which exists, as rank 0 does, and tensor files of the right size."""
    for record in gathered.records:
        with (folder / record.name).open("wb") as file:
            file.truncate(record.size)
    write_rest(gathered.captured, folder, gathered.records)


def header_bytes(tensors: dict[str, Tensor]) -> int:
    """Return the bytes in front of the tensors of a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": tuple(tensor.shape), "data_offsets": [start, end]}
    return 8 + math.ceil(len(to_json(header)) / 8) * 8


def _state(config: RunConfig, cluster: Cluster) -> SavedState:
    return SavedState(
        int(STEPS), 10**9, config.model_dump(), cluster.layout.world_size, cluster.layout.zero_stage, data={},
        engine={"schedule": {}}, guard={}, evaluated=None, metrics_bytes=0, code={},
    )  # fmt: skip


def _data(config: RunConfig, rank: int, world_size: int) -> dict[str, Any]:
    """The position of a rank in the data, with the keys of ``PretrainingLoader.state_dict``."""
    names = [item.name for item in config.data.mixture] or ["train"]
    streams = {str(s): {"sources": list(_sources(names, s))} for s in range(rank, config.data.num_streams, world_size)}
    text = {name: [f"part-{i:05d}-of-01024.json.gz of {i:,} bytes" for i in range(1024)] for name in names}
    return ({"text": text} if rank == 0 else {}) | {"identity": {}, "next_example": 10**6, "streams": streams}


def _sources(names: list[str], stream: int) -> Iterator[dict[str, Any]]:
    counts = ("rows", "documents", "tokens", "examples")
    numbers = ("epoch", "shard", "row", "packs_given", "pieces_before_pack", "pieces_given", "examples_given")
    for number, _ in enumerate(names):
        place = dict.fromkeys((*numbers, "tokens_given"), 10**5 + 1024 * number + stream)
        yield place | {"counts": dict.fromkeys(counts, 10**6 + stream), "pack_counts": dict.fromkeys(counts, stream)}


def meta_like(shape: tuple[int, ...]) -> Tensor:
    """Return a tensor without memory."""
    return torch.empty(shape, device="meta")
