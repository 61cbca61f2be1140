"""Checkpoints of a DeepSpeed engine that load at any parallel layout, bit for bit.

Each rank writes the master weights and the optimizer's state of the ranges that it holds; at a load, each rank reads
the ranges that it holds then, from whichever files they are in. No file is pickled.
"""

from pathlib import Path
from typing import Any

import deepspeed.comm as dist

from data.loader import merge_states
from training.config import RunConfig
from training.element_state import join, owners, read_ranges, write_ranges
from training.optimizer_state import load_optimizer_state, save_optimizer_state
from training.ranges import engine_ranges, refresh_weights
from training.rank_state import load_rank_state, rank_state_name, save_rank_state
from training.saved_state import (
    BY_RANK,
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
from training.shards import INDEX_FILE, ShardReader, shard_name

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
    partial.mkdir(exist_ok=True)  # a network file system may not show it to other hosts yet
    optimizer, ranges = engine.basic_optimizer, engine_ranges(engine)
    by_rank = config.optimizer.name in BY_RANK
    part = write_ranges(optimizer, ranges, partial / shard_name(rank, world_size), weights_only=by_rank)
    if by_rank:
        save_rank_state(optimizer, owners(ranges), partial / rank_state_name(rank))
    save_optimizer_state(optimizer, partial)
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, (part, data_state))  # every rank's files are whole now
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
        write_text(partial / INDEX_FILE, join([part for part, _ in parts]).to_json())
        write_state(partial, state)
        publish(folder)
        set_latest(folder)
    dist.barrier()
    return folder


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
