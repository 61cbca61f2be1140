"""Rewrites a checkpoint's files for another parallel layout, offline, chunk by chunk.

Any checkpoint loads at any layout without this (see ``load``). Afterwards each rank finds its share of every parameter
in one file: for moving a checkpoint to another cluster, or merging many small files.
"""

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

from training.checkpoint.optimizer_state.registry import state_format
from training.checkpoint.resume import check_layout_fits, read_checkpoint
from training.checkpoint.store.index import (
    INDEX_FILE,
    Index,
    StoredParameter,
    TensorReader,
    rank_file_name,
    write_ranges,
)
from training.checkpoint.store.layout import ParallelLayout
from training.checkpoint.store.manifest import FileRecord, read_manifest, record_text, write_manifest
from training.checkpoint.store.publish import begin, publish
from training.checkpoint.store.runs import Runs
from training.checkpoint.store.state import STATE_FILE, SavedState, read_folder
from training.config.checks import check_expert_parallel
from training.config.errors import ConfigError
from training.config.run import validate
from training.run.folder import RunFolder


def reshard(run_dir: Path, expert_parallel_size: int, world_size: int, zero_stage: int) -> Path:
    """Write the run's newest checkpoint for another layout, beside it, and let ``latest`` name the copy.

    The original is not touched. A complete copy that exists is kept, an incomplete one is written again.

    Returns:
        The copy's folder.

    Raises:
        ConfigError: there is no intact checkpoint, or a run cannot have this layout.
    """
    source = read_checkpoint(run_dir)
    values = source.state.config
    values = values | {"parallel": values["parallel"] | {"expert_parallel_size": expert_parallel_size}}
    config = validate(values)
    check_layout_fits(source, ParallelLayout.of(values, world_size, zero_stage))
    check_expert_parallel(config, world_size, "--world-size")
    for key, value in (
        ("data.num_streams", config.data.num_streams),
        ("training.global_batch_size", config.training.global_batch_size),
    ):
        if value % world_size:
            raise ConfigError(f"--world-size {world_size} does not divide {key} = {value}, which stays: use a divisor")
    state = replace(source.state, config=config.model_dump(), world_size=world_size, zero_stage=zero_stage)
    run = RunFolder(run_dir)
    original = run.checkpoint(state.step)
    folder = original.with_name(f"{original.name}-ep{expert_parallel_size}-world{world_size}-zero{zero_stage}")
    if folder.exists():
        _refuse_other(folder, state)
    else:
        partial = begin(folder)
        records = _write(TensorReader(source.folder), partial, expert_parallel_size, world_size)
        state_files = state_format(state.optimizer)
        for record in read_manifest(source.folder):
            if state_files.is_layout_free(record.name):
                _copy(source.folder / record.name, partial / record.name)
                records.append(record)
        records.append(record_text(partial / STATE_FILE, state.to_json()))
        write_manifest(partial, records)
        publish(folder)
    run.set_latest(folder)
    return folder


def resume_command(run_dir: Path, folder: Path) -> str:
    """Return the command that resumes ``run_dir`` from ``folder`` at its layout.

    The global batch stays: where a rank's share of it, or of the evaluation, is smaller than a micro-batch, the command
    sets a smaller micro-batch.
    """
    state = read_folder(folder).state
    training, world = state.config["training"], state.world_size
    micro = math.gcd(training["micro_batch_size"], training["global_batch_size"] // world)
    if training["eval_examples"] % world == 0:
        micro = math.gcd(micro, training["eval_examples"] // world)
    arguments = [
        "--resume",
        f"parallel.expert_parallel_size={state.layout.expert_parallel_size}",
        f"training.deepspeed_config=ds_configs/zero{state.zero_stage}.json",
    ]
    if micro != training["micro_batch_size"]:
        arguments.append(f"training.micro_batch_size={micro}")
    return RunFolder(run_dir).train_command(world, *arguments)


def _refuse_other(folder: Path, state: SavedState) -> None:
    if read_folder(folder).state != state:
        raise ConfigError(f"{folder} exists and belongs to another run: remove it")


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _write(reader: TensorReader, folder: Path, expert_parallel_size: int, world_size: int) -> list[FileRecord]:
    """Write rank files and index for the new layout."""
    files = tuple(rank_file_name(rank, world_size) for rank in range(world_size))
    parameters = {}
    own: list[list[tuple[str, int, int]]] = [[] for _ in files]  # of each file: parameter, start, stop
    for name, parameter in reader.index.parameters.items():
        shares = [rank_share(parameter, rank, expert_parallel_size, world_size) for rank in range(world_size)]
        ranges = Runs.of((*share, rank) for rank, share in enumerate(shares))
        parameters[name] = replace(parameter, ranges=ranges)
        for start, stop, file in ranges.overlapping(0, parameter.numel):
            own[file].append((name, start, stop))
    index = Index(reader.index.states, reader.index.scalars, files, parameters)
    records = [
        write_ranges(folder / file, ranges, index.states_of, reader.read)
        for file, ranges in zip(files, own, strict=True)
    ]
    return [*records, record_text(folder / INDEX_FILE, index.to_json())]


def rank_share(parameter: StoredParameter, rank: int, expert_parallel_size: int, world_size: int) -> tuple[int, int]:
    """Return the flat range of a parameter that ``rank`` holds, as ZeRO 3 cuts it: equal shares, the last ones shorter.

    Experts are first dealt to the ``expert_parallel_size`` consecutive ranks of a group, in equal blocks.
    """
    numel = parameter.numel
    first, shares, share = 0, world_size, rank
    if parameter.split_experts:
        numel //= expert_parallel_size
        first = rank % expert_parallel_size * numel
        shares, share = world_size // expert_parallel_size, rank // expert_parallel_size
    each = -(-numel // shares)
    return first + min(share * each, numel), first + min((share + 1) * each, numel)
