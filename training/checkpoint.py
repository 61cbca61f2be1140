"""Checkpoints of a DeepSpeed engine that load at any parallel layout, bit for bit.

Each rank writes the master weights and the optimizer's state of the ranges it holds; at a load, each rank reads the
ranges that it holds then, from whichever files they are in. No file is pickled.
"""

from pathlib import Path
from typing import Any, NamedTuple

import deepspeed.comm as dist
import torch
from torch import Tensor

from data.loader import merge_states
from training.config import RunConfig
from training.optimizer_state import load_optimizer_state, save_optimizer_state
from training.ranges import Range, engine_ranges, refresh_weights
from training.saved_state import (
    Checkpoint,
    SavedState,
    begin,
    checkpoints_dir,
    partial_folder,
    publish,
    set_latest,
    write_state,
    write_text,
)
from training.shards import INDEX_FILE, WEIGHT, Entry, Index, Piece, ShardReader, chunks, shard_name, write_shard

COUNTERS = ("global_steps", "global_samples", "skipped_steps")  # DeepSpeed's own


def save_checkpoint(engine: Any, config: RunConfig, *, step: int, tokens: int, data_state: dict[str, Any]) -> Path:
    """Write a checkpoint; collective over all ranks.

    Args:
        engine: the DeepSpeed engine.
        config: of the run.
        step: updates made.
        tokens: real tokens processed, over all ranks.
        data_state: this rank's position in the data.

    Returns:
        The checkpoint's folder.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    folder = checkpoints_dir(config.run_dir) / f"step_{step:08d}"
    partial = partial_folder(folder)
    if rank == 0:
        begin(folder)
    dist.barrier()
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, (_write_ranges(engine, partial / shard_name(rank, world_size)), data_state))
    save_optimizer_state(engine.basic_optimizer, partial)
    if rank == 0:
        state = SavedState(
            step=step,
            tokens=tokens,
            config=config.model_dump(),
            world_size=world_size,
            zero_stage=int(engine.zero_optimization_stage()),
            data=merge_states([data for _, data in parts]),
            engine={name: getattr(engine, name) for name in COUNTERS} | {"schedule": engine.lr_scheduler.state_dict()},
        )
        write_text(partial / INDEX_FILE, _join([part for part, _ in parts]).to_json())
        write_state(partial, state)
        publish(folder)
        set_latest(folder)
    dist.barrier()
    return folder


def load_checkpoint(engine: Any, checkpoint: Checkpoint) -> None:
    """Restore weights, optimizer, schedule and counters, whatever layout they were saved at; collective.

    Args:
        engine: the DeepSpeed engine, fresh or not.
        checkpoint: of the same model and optimizer.

    Raises:
        ValueError: the checkpoint's tensors are not those of the engine's model, or a file is missing or broken.
    """
    reader = ShardReader(checkpoint.folder)
    index, ranges, optimizer = reader.index, engine_ranges(engine), engine.basic_optimizer
    for r in ranges:
        if r.name not in index.parameters or index.parameters[r.name].shape != r.shape:
            raise ValueError(f"{checkpoint.folder} does not hold {r.name} {r.shape}: it is of another model")
    for owner in {id(r.owner): r.owner for r in ranges}.values():
        # A number is a tensor of its own for each owner: AdamW counts its steps in place.
        optimizer.state[owner] = {
            name: torch.tensor(value) if isinstance(value, float) else value for name, value in index.scalars.items()
        } | {state: torch.zeros_like(owner, requires_grad=False) for state in index.states if state != WEIGHT}
    for r in ranges:
        for state in index.states:
            target = r.of(_tensor(optimizer, r, state))
            for start, stop in chunks(r.start, r.stop):
                target[start - r.start : stop - r.start].copy_(reader.read(r.name, state, start, stop))
    refresh_weights(engine)
    load_optimizer_state(optimizer, checkpoint.folder)

    saved = checkpoint.state.engine
    for name in COUNTERS:
        setattr(engine, name, saved[name])
    engine.lr_scheduler.load_state_dict(dict(saved["schedule"]))
    for group, rate in zip(optimizer.param_groups, engine.lr_scheduler.get_last_lr(), strict=True):
        group["lr"] = rate


class Part(NamedTuple):
    """What one rank wrote: which states, the numbers that are no tensors, and the pieces of parameters."""

    states: dict[str, torch.dtype]
    scalars: dict[str, float]
    pieces: list[tuple[str, tuple[int, ...], bool, Piece]]  # name, shape, expert


def _write_ranges(engine: Any, path: Path) -> Part:
    """Write this rank's share of what the ranks hold."""
    optimizer = engine.basic_optimizer
    ranges = {r.name: share for r in engine_ranges(engine) if (share := r.share()).start < share.stop}
    kinds = [_kinds(optimizer, r.owner) for r in ranges.values()]
    states, scalars = kinds[0] if kinds else ({}, {})
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError(f"{type(optimizer).__name__} keeps not the same of all parameters")

    def read(name: str, state: str, start: int, stop: int) -> Tensor:
        r = ranges[name]
        return r.of(_tensor(optimizer, r, state))[start - r.start : stop - r.start]

    write_shard(path, [(r.name, r.start, r.stop) for r in ranges.values()], states, read)
    pieces = [(r.name, r.shape, r.expert, Piece(r.start, r.stop, path.name)) for r in ranges.values()]
    return Part(states, scalars, pieces)


def _kinds(optimizer: Any, owner: Tensor) -> tuple[dict[str, torch.dtype], dict[str, float]]:
    """What there is per element of ``owner``, and the optimizer's plain numbers."""
    states, scalars = {WEIGHT: owner.dtype}, {}
    for name, value in optimizer.state[owner].items():
        if isinstance(value, Tensor) and value.shape == owner.shape:
            states[name] = value.dtype
        elif isinstance(value, int | float):
            scalars[name] = value
        elif value.numel() == 1:
            scalars[name] = value.item()
        else:
            raise ValueError(
                f"{type(optimizer).__name__} keeps {name} of shape {tuple(value.shape)} for {tuple(owner.shape)} "
                "weights: checkpoints hold one number per weight or per optimizer"
            )
    return states, scalars


def _tensor(optimizer: Any, r: Range, state: str) -> Tensor:
    return r.owner if state == WEIGHT else optimizer.state[r.owner][state]


def _join(parts: list[Part]) -> Index:
    """The index of all ranks' files. Raises ValueError when they do not fit together."""
    parts = [part for part in parts if part.pieces]
    for part in parts:
        if (part.states, part.scalars) != (parts[0].states, parts[0].scalars):
            raise ValueError(f"ranks hold different optimizer states: {part[:2]} and {parts[0][:2]}")
    entries: dict[str, Entry] = {}
    for name, shape, expert, piece in sorted((row for part in parts for row in part.pieces), key=lambda row: row[3]):
        pieces = entries[name].pieces if name in entries else ()
        entries[name] = Entry(shape, expert, (*pieces, piece))
    states = {state: str(dtype).removeprefix("torch.") for state, dtype in parts[0].states.items()}
    return Index(states, parts[0].scalars, entries)
