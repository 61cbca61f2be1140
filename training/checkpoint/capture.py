"""Checkpoints of a DeepSpeed engine that load at any parallel layout, bit for bit.

Each rank writes the master weights and the optimizer's state of the ranges that it holds; at a load, each rank reads
the ranges that it holds then, from whichever files they are in. No file is pickled. What is captured here is
written by ``training/checkpoint/saver.py``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import torch
from torch import Tensor

from data.streaming.loader import merge_states
from training.checkpoint.adafactor_state import INDEX_FILE as OPTIMIZER_INDEX_FILE
from training.checkpoint.adafactor_state import load_optimizer_state, optimizer_file, optimizer_index, optimizer_tensors
from training.checkpoint.element_state import Part, join, owners, part_of, read_ranges
from training.checkpoint.ranges import engine_ranges, refresh_weights
from training.checkpoint.rank_state import load_rank_state, rank_state, rank_state_name
from training.checkpoint.store.index import INDEX_FILE, ShardReader, shard_name
from training.checkpoint.store.manifest import FileRecord, record_text, write_manifest
from training.checkpoint.store.state import BY_RANK, STATE_FILE, Checkpoint, SavedState
from training.checkpoint.store.tensor_file import write_tensors
from training.config.run import RunConfig

COUNTERS = ("global_steps", "global_samples", "skipped_steps")  # DeepSpeed's own


@dataclass(frozen=True)
class Moment:
    """Where a run is, besides its tensors."""

    step: int  # updates made
    tokens: int  # real tokens processed, over all ranks
    data: dict[str, Any]  # this rank's position
    guard: dict[str, Any]
    evaluated: list[float] | None
    metrics_bytes: int
    code: dict[str, str | None]


@dataclass(frozen=True)
class RankMeta:
    """What rank 0 must know of a rank's files."""

    part: Part
    data: dict[str, Any]
    names: dict[str, list[str]]  # of the tensors in each file


@dataclass(frozen=True)
class Capture:
    """A checkpoint in memory: this rank's files and, on rank 0, what is said of all of them."""

    files: dict[str, dict[str, Tensor]]  # file → its tensors
    state: SavedState
    ranks: list[RankMeta]

    @property
    def nbytes(self) -> int:
        """Of this rank's tensors."""
        return sum(tensor.nbytes for tensors in self.files.values() for tensor in tensors.values())


def capture(engine: Any, config: RunConfig, moment: Moment) -> Capture:
    """What a checkpoint is made of; its tensors are views of the engine's own. Collective over all ranks."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    optimizer, ranges = engine.basic_optimizer, engine_ranges(engine)
    by_rank = config.optimizer.name in BY_RANK
    shard = shard_name(rank, world_size)
    part, tensors = part_of(optimizer, ranges, shard, weights_only=by_rank)
    files = {shard: tensors}
    if by_rank:
        files[rank_state_name(rank)] = rank_state(optimizer, owners(ranges))
    if extra := optimizer_tensors(optimizer):
        files[optimizer_file(rank)] = extra
    ranks: list[Any] = [None] * world_size
    meta = RankMeta(part, moment.data, {file: list(tensors) for file, tensors in files.items()})
    dist.all_gather_object(ranks, meta)
    state = SavedState(
        step=moment.step,
        tokens=moment.tokens,
        config=config.model_dump(),
        world_size=world_size,
        zero_stage=int(engine.zero_optimization_stage()),
        data=merge_states([meta.data for meta in ranks]) if rank == 0 else {},
        engine={name: getattr(engine, name) for name in COUNTERS} | {"schedule": engine.lr_scheduler.state_dict()},
        guard=moment.guard,
        evaluated=moment.evaluated,
        metrics_bytes=moment.metrics_bytes,
        code=moment.code,
    )
    return Capture(files, state, ranks)


def write_files(captured: Capture, folder: Path) -> list[FileRecord]:
    """This rank's files; ``folder`` exists. Raises OSError."""
    return [write_tensors(folder / file, tensors) for file, tensors in captured.files.items()]


def write_rest(captured: Capture, folder: Path, records: Iterable[FileRecord]) -> None:
    """Indices, state and, last, the manifest; of rank 0, when all ranks' files are on disk. Raises OSError.

    Args:
        captured: rank 0's.
        folder: with the files.
        records: of all ranks' files.
    """
    records = [*records]
    records.append(record_text(folder / INDEX_FILE, join([meta.part for meta in captured.ranks]).to_json()))
    names = {file: names for meta in captured.ranks for file, names in meta.names.items()}
    if extra := {file: tensors for file, tensors in names.items() if file.startswith("optimizer-")}:
        records.append(record_text(folder / OPTIMIZER_INDEX_FILE, optimizer_index(extra)))
    records.append(record_text(folder / STATE_FILE, captured.state.to_json()))
    write_manifest(folder, records)


class HostCopies:
    """Copies of a capture in host memory, which is kept for the next one: only the first one has to get it."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, str], Tensor] = {}

    @torch.no_grad()
    def copy(self, captured: Capture) -> Capture:
        """The same capture, of tensors that training does not change."""
        files = {
            file: {name: self._copy((file, name), tensor) for name, tensor in tensors.items()}
            for file, tensors in captured.files.items()
        }
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return Capture(files, captured.state, captured.ranks)

    def _copy(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        buffer = self.buffers.get(key)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self.buffers[key] = buffer
        return buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)


def load_checkpoint(engine: Any, checkpoint: Checkpoint) -> None:
    """Restore weights, optimizer, schedule and counters, whatever layout they were saved at; collective.

    Args:
        engine: the DeepSpeed engine.
        checkpoint: of the same model and optimizer.

    Raises:
        ValueError: the checkpoint's tensors are not those of the engine's model, or a file is missing or broken.
    """
    folder, state = checkpoint
    optimizer, ranges = engine.basic_optimizer, engine_ranges(engine)
    read_ranges(optimizer, ranges, ShardReader(folder))
    if state.config["optimizer"]["name"] in BY_RANK:
        load_rank_state(optimizer, owners(ranges), folder / rank_state_name(dist.get_rank()))
    load_optimizer_state(optimizer, folder)
    refresh_weights(engine)

    for name in COUNTERS:
        setattr(engine, name, state.engine[name])
    engine.lr_scheduler.load_state_dict(dict(state.engine["schedule"]))
    for group, rate in zip(optimizer.param_groups, engine.lr_scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
