"""Captures a checkpoint from a DeepSpeed engine and writes its files.

Each rank writes the master weights and the optimizer's state that it holds; on loading, each rank reads what it holds
then from whichever files have it, so a checkpoint loads at any parallel layout, bit for bit. No file is pickled.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
from torch import Tensor

from data.streaming.loader import merge_states
from training.checkpoint.optimizer_state.registry import state_format
from training.checkpoint.rank_file import RankContents, join, rank_contents
from training.checkpoint.store.index import INDEX_FILE, rank_file_name
from training.checkpoint.store.manifest import FileRecord, record_text, write_manifest
from training.checkpoint.store.state import STATE_FILE, SavedState
from training.checkpoint.store.tensor_file import write_tensors
from training.config.run import RunConfig
from training.engine.parameters import engine_partitions, frozen_partitions

COUNTERS = ("global_steps", "global_samples", "skipped_steps")  # DeepSpeed's own


@dataclass(frozen=True)
class Moment:
    """Position of a run; fields of ``SavedState``, ``data`` of this rank alone."""

    step: int  # updates made
    tokens: int  # real tokens processed, over all ranks
    data: dict[str, Any]  # this rank's position
    guard: dict[str, Any]
    evaluated: list[float] | None
    metrics_bytes: int
    code: dict[str, str | None]
    seconds: float = 0.0
    routing: dict[str, list[float]] = field(default_factory=dict)
    evaluated_domains: dict[str, float] = field(default_factory=dict)
    evaluated_scores: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class RankMeta:
    """Metadata of one rank's files, gathered for rank 0."""

    contents: RankContents  # of its rank file
    data: dict[str, Any]
    state_tensors: dict[str, list[str]]  # file of optimizer state → names of its tensors


@dataclass(frozen=True)
class Capture:
    """A checkpoint in memory: this rank's files, and what rank 0 writes about all of them."""

    files: dict[str, dict[str, Tensor]]  # file → its tensors
    state: SavedState
    ranks: list[RankMeta]

    @property
    def nbytes(self) -> int:
        """Bytes of this rank's tensors."""
        return sum(tensor.nbytes for tensors in self.files.values() for tensor in tensors.values())


def capture(engine: Any, config: RunConfig, moment: Moment) -> Capture:
    """Capture a checkpoint; its tensors are views of the engine's own. Collective over all ranks.

    Raises:
        ValueError: the optimizer keeps what a checkpoint cannot hold.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    optimizer, partitions = engine.basic_optimizer, engine_partitions(engine)
    state_files = state_format(config.optimizer.name)
    rank_file = rank_file_name(rank, world_size)
    contents, tensors = rank_contents(
        optimizer, partitions, rank_file, with_state=state_files.in_rank_files, frozen=frozen_partitions(engine)
    )
    extra = state_files.write(optimizer, partitions, rank)
    meta = RankMeta(contents, moment.data, {file: list(of_file) for file, of_file in extra.items()})
    ranks: list[Any] = [None] * world_size
    dist.all_gather_object(ranks, meta)
    state = SavedState(
        **vars(moment) | {"data": merge_states([meta.data for meta in ranks]) if rank == 0 else {}},
        config=config.model_dump(),
        world_size=world_size,
        zero_stage=int(engine.zero_optimization_stage()),
        engine={name: getattr(engine, name) for name in COUNTERS} | {"schedule": engine.lr_scheduler.state_dict()},
    )
    return Capture({rank_file: tensors} | extra, state, ranks)


def write_files(captured: Capture, folder: Path) -> list[FileRecord]:
    """Write this rank's files into ``folder``, which exists. Raises OSError."""
    return [write_tensors(folder / file, tensors) for file, tensors in captured.files.items()]


def write_rest(captured: Capture, folder: Path, records: Iterable[FileRecord]) -> None:
    """Write indices, state and, last, the manifest; on rank 0, when all ranks' files are on disk. Raises OSError.

    Args:
        captured: rank 0's.
        folder: with the files.
        records: of all ranks' files.
    """
    texts = {INDEX_FILE: join([meta.contents for meta in captured.ranks]).to_json()}
    tensors_of = {file: names for meta in captured.ranks for file, names in meta.state_tensors.items()}
    texts |= state_format(captured.state.optimizer).index(tensors_of)
    texts[STATE_FILE] = captured.state.to_json()
    write_manifest(folder, [*records, *(record_text(folder / name, text) for name, text in texts.items())])
