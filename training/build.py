"""The model on this rank's device and the DeepSpeed engine around it."""

from typing import Any

import deepspeed
import torch

from model.config import StMoeConfig
from model.initialisation import initialise_weights
from model.st_moe import StMoeForConditionalGeneration
from optim.build import build_optimizer
from optim.schedule import make_schedule
from parallel.layer import sparse_factory
from training.config import RunConfig
from training.deepspeed_config import deepspeed_config


def build_model(
    config: StMoeConfig, expert_parallel_size: int, seed: int, device: str
) -> StMoeForConditionalGeneration:
    """This rank's share of the model: made without storage, so that no rank ever holds all experts, then filled.

    Collective over all ranks (expert-parallel groups).
    """
    with torch.device("meta"):
        model = StMoeForConditionalGeneration(config, sparse_factory(expert_parallel_size))
    model.to_empty(device=device)
    initialise_weights(model, config, seed)
    return model


def build_engine(config: RunConfig, world_size: int, device: str) -> Any:
    """The DeepSpeed engine with model, optimizer and schedule; collective over all ranks."""
    model = build_model(config.st_moe_config(), config.parallel.expert_parallel_size, config.training.seed, device)
    if config.training.activation_checkpointing:
        model.activation_checkpointing_enable()
    optimizer = build_optimizer(model.named_parameters(), config.optimizer, model.get_input_embeddings().weight)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=make_schedule(optimizer, config.optimizer),
        config=deepspeed_config(config, world_size),
    )
    return engine
