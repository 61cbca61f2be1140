"""Restores a DeepSpeed engine from a checkpoint of any layout."""

from typing import Any

import deepspeed.comm as dist

from training.checkpoint.capture import COUNTERS
from training.checkpoint.master_weights import refresh_weights
from training.checkpoint.optimizer_state.registry import state_format
from training.checkpoint.rank_file import read_elements, read_frozen
from training.checkpoint.store.index import TensorReader
from training.checkpoint.store.state import Checkpoint
from training.engine.parameters import engine_partitions, frozen_partitions


def load_checkpoint(engine: Any, checkpoint: Checkpoint) -> None:
    """Restore weights, optimizer, schedule and counters; collective.

    Args:
        engine: the DeepSpeed engine.
        checkpoint: of the same model and optimizer.

    Raises:
        ValueError: the checkpoint's tensors are not those of the engine's model, or a file is missing or damaged.
    """
    folder, state = checkpoint
    optimizer, partitions = engine.basic_optimizer, engine_partitions(engine)
    reader = TensorReader(folder)
    read_elements(optimizer, partitions, reader)
    read_frozen(optimizer, frozen_partitions(engine), reader)
    state_format(state.optimizer).read(optimizer, partitions, folder, dist.get_rank())
    refresh_weights(engine)

    for name in COUNTERS:
        setattr(engine, name, state.engine[name])
    engine.lr_scheduler.load_state_dict(dict(state.engine["schedule"]))
    for group, rate in zip(optimizer.param_groups, engine.lr_scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
