"""A checkpoint's files cut anew for another parallel layout, offline, piece by piece.

Any checkpoint loads at any layout without this (see ``capture``). Afterwards each rank finds its share of
every parameter in one file: for moving a checkpoint to another cluster, or bringing many small files together.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from training.checkpoint.store.index import INDEX_FILE, Entry, Index, Piece, ShardReader, shard_name, write_shard
from training.checkpoint.store.manifest import FileRecord, read_manifest, record_text, write_manifest
from training.checkpoint.store.publish import begin, publish, set_latest
from training.checkpoint.store.state import (
    STATE_FILE,
    SavedState,
    checkpoints_dir,
    read_checkpoint,
    read_folder,
    refuse_by_rank,
)
from training.config.checks import check_expert_parallel
from training.config.errors import ConfigError
from training.config.run import validate


def reshard(
    run_dir: Path,
    expert_parallel_size: int,
    world_size: int,
    zero_stage: int,
    report: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the run's newest checkpoint for another layout, beside it, and let ``latest`` name the copy.

    The original is not touched. A copy that was cut off is begun anew; one that is whole is kept. ``report`` is told of
    damaged checkpoints that are passed over.

    Returns:
        The copy's folder.

    Raises:
        ConfigError: there is no checkpoint, or a run cannot have this layout.
    """
    source = read_checkpoint(run_dir, report=report)
    values = source.state.config
    values = values | {"parallel": values["parallel"] | {"expert_parallel_size": expert_parallel_size}}
    config = validate(values)
    refuse_by_rank(source.state, expert_parallel_size, world_size, zero_stage)
    check_expert_parallel(config, world_size)
    for key, value in (
        ("data.num_streams", config.data.num_streams),
        ("training.global_batch_size", config.training.global_batch_size),
    ):
        if value % world_size:
            raise ConfigError(f"--world-size {world_size} does not divide {key} = {value}, which stays: use a divisor")
    state = replace(source.state, config=config.model_dump(), world_size=world_size, zero_stage=zero_stage)
    layout = f"ep{expert_parallel_size}-world{world_size}-zero{zero_stage}"
    folder = checkpoints_dir(run_dir) / f"step_{state.step:08d}-{layout}"
    if folder.exists():
        _refuse_other(folder, state)
    else:
        partial = begin(folder)
        records = _write(ShardReader(source.folder), partial, expert_parallel_size, world_size)
        for record in read_manifest(source.folder):
            if record.name.startswith("optimizer"):  # Adafactor's, which does not depend on the layout, and is small
                _copy(source.folder / record.name, partial / record.name)
                records.append(record)
        records.append(record_text(partial / STATE_FILE, state.to_json()))
        write_manifest(partial, records)
        publish(folder)
    set_latest(folder)
    return folder


def _refuse_other(folder: Path, state: SavedState) -> None:
    if read_folder(folder).state != state:
        raise ConfigError(f"{folder} exists and is of another run: remove it")


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _write(reader: ShardReader, folder: Path, expert_parallel_size: int, world_size: int) -> list[FileRecord]:
    """Shards and index of the new layout."""
    entries = {}
    for name, entry in reader.index.parameters.items():
        pieces = [
            Piece(*share, shard_name(rank, world_size))
            for rank in range(world_size)
            if (share := rank_share(entry, rank, expert_parallel_size, world_size))[0] < share[1]
        ]
        entries[name] = replace(entry, pieces=tuple(sorted(pieces)))
    index = Index(reader.index.states, reader.index.scalars, entries)
    states = {state: index.dtype(state) for state in index.states}
    records = []
    for rank in range(world_size):
        file = shard_name(rank, world_size)
        ranges = [
            (name, piece.start, piece.stop)
            for name, entry in entries.items()
            for piece in entry.pieces
            if piece.file == file
        ]
        records.append(write_shard(folder / file, ranges, states, reader.read))
    return [*records, record_text(folder / INDEX_FILE, index.to_json())]


def rank_share(entry: Entry, rank: int, expert_parallel_size: int, world_size: int) -> tuple[int, int]:
    """Flat range of a parameter that ``rank`` holds, as ZeRO 3 cuts it: equal parts, the last ones shorter or empty.

    Experts are first dealt to the ``expert_parallel_size`` ranks of a group, consecutive ones, in equal blocks.
    """
    numel = entry.numel
    first, parts, part = 0, world_size, rank
    if entry.expert:
        numel //= expert_parallel_size
        first = rank % expert_parallel_size * numel
        parts, part = world_size // expert_parallel_size, rank // expert_parallel_size
    each = -(-numel // parts)
    return first + min(part * each, numel), first + min((part + 1) * each, numel)
