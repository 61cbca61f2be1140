"""Builds the model on this rank's device and the DeepSpeed engine around it."""

from typing import Any

import deepspeed
import torch
from deepspeed.runtime import bf16_optimizer

from model.config import StMoeConfig
from model.initialization import initialize_weights
from model.st_moe import StMoeForConditionalGeneration
from optim.adafactor import Adafactor
from optim.build import build_optimizer
from optim.schedule import make_schedule
from optim.stage_zero import StageZero
from parallel.config import ParallelConfig
from parallel.layer import sparse_factory
from training.config.deepspeed import deepspeed_config, zero_stage
from training.config.run import RunConfig
from training.config.training import TRAINABLE
from training.engine.compilation import compile_blocks, import_muon
from training.engine.numerics import set_numerics
from training.engine.parameters import engine_partitions, freeze, model_parameter_specs
from training.engine.profiling import prepare_comms_logger


def build_model(
    config: StMoeConfig, parallel: ParallelConfig, seed: int, device: str, *, known: bool = True
) -> StMoeForConditionalGeneration:
    """Return this rank's share of the model: built on the meta device, so that no rank ever holds all experts.

    Collective over all ranks, because it creates the expert-parallel groups.

    Args:
        config: the model's.
        parallel: the layout of the experts.
        seed: of the weights.
        device: of the weights.
        known: whether DeepSpeed is to know of the sparse layers, see ``parallel.layer``.
    """
    with torch.device("meta"):
        model = StMoeForConditionalGeneration(config, sparse_factory(parallel, known=known))
    model.to_empty(device=device)
    initialize_weights(model, config, seed)
    return model


def build_engine(config: RunConfig, world_size: int, device: str) -> Any:
    """Return the DeepSpeed engine with model, optimizer and schedule; collective over all ranks."""
    set_numerics(deterministic=config.training.deterministic)
    options = deepspeed_config(config, world_size)
    trainable = config.training.trainable
    known = zero_stage(options) == 3 or "experts" in TRAINABLE[trainable]
    model = build_model(config.st_moe_config(), config.parallel, config.training.seed, device, known=known)
    freeze(model, trainable)
    if config.training.activation_checkpointing:
        model.activation_checkpointing_enable()
    if config.training.compile:
        compile_blocks(model)
    if zero_stage(options) == 3:
        _keep_no_casts(model)
    optimizer = build_optimizer(model_parameter_specs(model), config.optimizer, model.get_input_embeddings().weight)
    bf16_optimizer.see_memory_usage = lambda *_, **__: None  # it prints a page about the memory of this host
    if options.get("comms_logger", {}).get("enabled"):
        prepare_comms_logger()
    import_muon()
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=make_schedule(optimizer, config.optimizer, config.training.steps),
        config=options,
    )
    if isinstance(optimizer, Adafactor):
        optimizer.bind(engine_partitions(engine))
    if int(engine.zero_optimization_stage()) == 0:
        clipping = config.optimizer.gradient_clipping
        optimizer.register_step_pre_hook(StageZero(engine.optimizer, engine_partitions(engine), clipping))
    return engine


def _keep_no_casts(model: StMoeForConditionalGeneration) -> None:
    """Let no module hold whole weights in the lower precision from the forward to the backward pass.

    ZeRO 3 gathers weights module by module and frees them; copies would keep all of them.
    """
    for module in model.modules():
        if hasattr(module, "keep_casts"):
            module.keep_casts = False
