"""Captures a checkpoint from a DeepSpeed engine and writes its files.

Each rank writes the master weights and the optimizer's state that it holds; on loading, each rank reads what it holds
then from whichever files have it, so a checkpoint loads at any parallel layout, bit for bit. No file is pickled.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
from torch import Tensor

from common.strict_json import to_json
from data.streaming.loader import merge_states
from training.checkpoint.gathering import gather_on_rank_0
from training.checkpoint.optimizer_state.registry import state_format
from training.checkpoint.rank_file import Entry, RankContents, join, rank_contents
from training.checkpoint.store.index import INDEX_FILE, rank_file_name
from training.checkpoint.store.manifest import FileRecord, record_text, write_manifest
from training.checkpoint.store.state import STATE_FILE, SavedState
from training.checkpoint.store.tensor_file import write_tensors
from training.config.run import RunConfig
from training.engine.parameters import engine_partitions, frozen_partitions

Files = dict[str, dict[str, Tensor]]
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
    """Metadata of one rank's files, gathered on rank 0."""

    contents: RankContents  # of its rank file
    data: dict[str, Any]
    optimizer: Any  # what the state format says of the rank's other files

    def pack(self) -> bytes:
        """Return it in few bytes, the entries as a digest: every rank has the same."""
        states, scalars, entries, spans = self.contents
        values = (states, scalars, _digest(entries), spans, self.data, self.optimizer)
        return zlib.compress(to_json(values).encode(), level=1)

    def unpack(self, packed: bytes) -> "RankMeta":
        """Return the metadata of another rank of the same model. Raises ValueError: it is of another model."""
        states, scalars, digest, spans, data, optimizer = json.loads(zlib.decompress(packed))
        if digest != _digest(self.contents.entries):
            raise ValueError("ranks hold different parameters")
        return RankMeta(RankContents(states, scalars, self.contents.entries, spans), data, optimizer)


def _digest(entries: list[Entry]) -> str:
    return hashlib.sha256(to_json(entries).encode()).hexdigest()


@dataclass(frozen=True)
class Capture:
    """A checkpoint in memory: this rank's files, and what rank 0 writes about all of them."""

    files: Files  # file → its tensors
    state: SavedState  # without the position in the data
    meta: RankMeta  # of this rank
    packed: list[bytes]  # of all ranks on rank 0, empty elsewhere

    @property
    def nbytes(self) -> int:
        """Bytes of this rank's tensors."""
        return sum(tensor.nbytes for tensors in self.files.values() for tensor in tensors.values())


def capture(engine: Any, config: RunConfig, moment: Moment) -> Capture:
    """Capture a checkpoint; its tensors are views of the engine's own. Collective over all ranks.

    Raises:
        ValueError: the optimizer keeps what a checkpoint cannot hold.
    """
    world_size = dist.get_world_size()
    contents, rank_file, extra = own_files(engine, config)
    meta = RankMeta(contents, moment.data, state_format(config.optimizer.name).describe(extra))
    packed = gather_on_rank_0(meta.pack())
    state = SavedState(
        **vars(moment) | {"data": {}},
        config=config.model_dump(),
        world_size=world_size,
        zero_stage=int(engine.zero_optimization_stage()),
        engine={name: getattr(engine, name) for name in COUNTERS} | {"schedule": engine.lr_scheduler.state_dict()},
    )
    return Capture(rank_file | extra, state, meta, packed or [])


def own_files(engine: Any, config: RunConfig) -> tuple[RankContents, Files, Files]:
    """Return the contents of this rank's file for the index, that file, and its files of optimizer state.

    Tensors are views of the engine's own.

    Raises:
        ValueError: the optimizer keeps what a checkpoint cannot hold.
    """
    rank = dist.get_rank()
    optimizer, partitions = engine.basic_optimizer, engine_partitions(engine)
    state_files = state_format(config.optimizer.name)
    contents, tensors = rank_contents(
        optimizer, partitions, with_state=state_files.in_rank_files, frozen=frozen_partitions(engine)
    )
    name = rank_file_name(rank, dist.get_world_size())
    return contents, {name: tensors}, state_files.write(optimizer, partitions, rank)


def write_files(captured: Capture, folder: Path) -> list[FileRecord]:
    """Write this rank's files into ``folder``, which exists. Raises OSError."""
    return [write_tensors(folder / file, tensors) for file, tensors in captured.files.items()]


def write_rest(captured: Capture, folder: Path, records: Iterable[FileRecord]) -> None:
    """Write indices, state and, last, the manifest; on rank 0, when all ranks' files are on disk.

    Args:
        captured: rank 0's.
        folder: with the files.
        records: of all ranks' files.

    Raises:
        OSError: a file cannot be written.
        ValueError: the ranks' files do not fit together.
    """
    ranks = [captured.meta.unpack(packed) for packed in captured.packed]
    files = [rank_file_name(rank, len(ranks)) for rank in range(len(ranks))]
    texts = {INDEX_FILE: join([meta.contents for meta in ranks], files).to_json()}
    texts |= state_format(captured.state.optimizer).index([meta.optimizer for meta in ranks])
    texts[STATE_FILE] = replace(captured.state, data=merge_states([meta.data for meta in ranks])).to_json()
    write_manifest(folder, [*records, *(record_text(folder / name, text) for name, text in texts.items())])
