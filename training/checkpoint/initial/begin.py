"""Gives an engine the weights of another run or of an export, at any layout, and on request the optimizer's state.

Schedule, position in the text and step are those of a new run.
"""

from typing import Any

import deepspeed.comm as dist

from common.logs import get_logger
from training.checkpoint.finite import some, weights_not_finite
from training.checkpoint.initial.readers import CheckpointWeights, Reader
from training.checkpoint.master_weights import refresh_weights
from training.checkpoint.optimizer_state.registry import state_format
from training.checkpoint.rank_file import read_elements
from training.checkpoint.store.index import chunks
from training.config.errors import ConfigError
from training.config.run import RunConfig
from training.engine.parameters import engine_partitions, frozen_partitions

logger = get_logger(__name__)


def begin_with(engine: Any, reader: Reader, config: RunConfig) -> None:
    """Give the engine the weights of a reader and, with ``training.init_optimizer``, its optimizer's state; collective.

    Raises:
        ConfigError: weights are not finite, or the optimizer's state is not that of the model.
    """
    key = f"training.init_from = {config.training.init_from}"
    if config.training.init_optimizer:
        assert isinstance(reader, CheckpointWeights)
        _read_optimizer(engine, reader, config.optimizer.name, key)
    for partition in [*engine_partitions(engine), *frozen_partitions(engine)]:
        weights = partition.tensor.detach().view(-1)
        for segment in partition.held():
            target, first = segment.view(weights), segment.elements.start
            for start, stop in chunks(first, segment.elements.stop):
                target[start - first : stop - first].copy_(reader.weight(segment.spec.name, start, stop))
    if bad := weights_not_finite(engine):
        raise ConfigError(f"{key}: not finite are {some(bad)}: name another")
    refresh_weights(engine)
    what = "the weights and the optimizer's state" if config.training.init_optimizer else "the weights"
    logger.info("beginning with %s of %s", what, config.training.init_from)


def _read_optimizer(engine: Any, checkpoint: CheckpointWeights, name: str, key: str) -> None:
    optimizer, partitions = engine.basic_optimizer, engine_partitions(engine)
    try:
        read_elements(optimizer, partitions, checkpoint.reader)
        state_format(name).read(optimizer, partitions, checkpoint.folder, dist.get_rank())
    except ValueError as error:
        raise ConfigError(f"training.init_optimizer = true, {key}: {error}: set false, or name another") from None
