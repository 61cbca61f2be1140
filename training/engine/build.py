"""The model on this rank's device and the DeepSpeed engine around it."""

from typing import Any

import deepspeed
import torch

from model.config import StMoeConfig
from model.initialization import initialize_weights
from model.st_moe import StMoeForConditionalGeneration
from optim.adafactor import Adafactor
from optim.build import build_optimizer
from optim.non_finite import discard_non_finite
from optim.schedule import make_schedule
from optim.slices import parameter_specs
from optim.zero_partitions import read_layout
from parallel.config import ParallelConfig
from parallel.layer import sparse_factory
from training.config.deepspeed import deepspeed_config
from training.config.run import RunConfig
from training.engine.parameters import first_experts


def build_model(config: StMoeConfig, parallel: ParallelConfig, seed: int, device: str) -> StMoeForConditionalGeneration:
    """This rank's share of the model: made without storage, so that no rank ever holds all experts, then filled.

    Collective over all ranks (expert-parallel groups).
    """
    with torch.device("meta"):
        model = StMoeForConditionalGeneration(config, sparse_factory(parallel))
    model.to_empty(device=device)
    initialize_weights(model, config, seed)
    return model


def build_engine(config: RunConfig, world_size: int, device: str) -> Any:
    """The DeepSpeed engine with model, optimizer and schedule; collective over all ranks."""
    model = build_model(config.st_moe_config(), config.parallel, config.training.seed, device)
    if config.training.activation_checkpointing:
        model.activation_checkpointing_enable()
    specs = parameter_specs(model.named_parameters(), first_experts(model))
    optimizer = build_optimizer(specs, config.optimizer, model.get_input_embeddings().weight)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=make_schedule(optimizer, config.optimizer, config.training.steps),
        config=deepspeed_config(config, world_size),
    )
    if isinstance(optimizer, Adafactor):
        optimizer.bind(read_layout(engine.optimizer, specs))
    if engine.optimizer is optimizer:  # DeepSpeed's wrappers find gradients that are not finite, but here is none
        optimizer.register_step_pre_hook(discard_non_finite)
    return engine
