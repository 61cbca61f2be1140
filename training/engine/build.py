"""Builds the model on this rank's device and the DeepSpeed engine around it."""

import os
from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from deepspeed.runtime import bf16_optimizer

from model.config import StMoeConfig
from model.draws.device import device_draws
from model.draws.threads import draw_all
from model.initialization import draws_of
from model.st_moe import StMoeForConditionalGeneration
from optim.adafactor import Adafactor
from optim.build import build_optimizer
from optim.schedule import make_schedule
from optim.stage_three import weights_once
from optim.stage_zero import StageZero
from parallel.config import ParallelConfig
from parallel.layer import sparse_factory
from parallel.materialization import Named, materialize
from training.config.deepspeed import deepspeed_config, zero_stage
from training.config.run import RunConfig
from training.config.training import TRAINABLE
from training.engine.compilation import compile_blocks, import_muon
from training.engine.numerics import set_numerics
from training.engine.parameters import engine_partitions, freeze, model_parameter_specs
from training.engine.profiling import prepare_comms_logger

DRAWN_ON_DEVICE = 10**8  # numbers that are worth the seconds which a GPU's tables take


def build_model(
    config: StMoeConfig, parallel: ParallelConfig, seed: int, device: str, *, known: bool = True
) -> StMoeForConditionalGeneration:
    """Return this rank's share of the model, not partitioned, in float32; collective over all ranks.

    Args:
        config: the model's.
        parallel: the layout of the experts.
        seed: of the weights.
        device: of the weights.
        known: whether DeepSpeed is to know of the sparse layers, see ``parallel.layer``.
    """
    model = meta_model(config, parallel, known=known)
    materialize(model, device, torch.float32, initializer(config, seed, device, model.num_parameters()))
    return model


def meta_model(config: StMoeConfig, parallel: ParallelConfig, *, known: bool = True) -> StMoeForConditionalGeneration:
    """Return this rank's share of the model on the meta device, so that no rank ever holds all experts.

    Collective over all ranks, because it creates the expert-parallel groups.
    """
    with torch.device("meta"):
        return StMoeForConditionalGeneration(config, sparse_factory(parallel, known=known))


def initializer(config: StMoeConfig, seed: int, device: str, size: int) -> Callable[[list[Named]], None]:
    """Return what draws the weights of modules: with as many threads as each rank of this host has cores, or on a GPU.

    Args:
        config: the model's.
        seed: of the weights.
        device: of the weights.
        size: numbers that are to be drawn in all.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    on_device = device_draws(torch.device(device)) if device != "cpu" and size >= DRAWN_ON_DEVICE else None

    def initialize(modules: list[Named]) -> None:
        draw_all([one for name, module in modules for one in draws_of(name, module, config, seed)], threads, on_device)

    return initialize


@torch.no_grad()
def await_weights(modules: list[Named]) -> None:
    """Make the weights of modules NaN until they are loaded: one that is not loaded must not go unnoticed."""
    for _, module in modules:
        for parameter in module.parameters(recurse=False):
            parameter.fill_(float("nan"))


def build_engine(
    config: RunConfig,
    world_size: int,
    device: str,
    *,
    initialize: bool = True,
    told: Callable[[], None] = lambda: None,
) -> Any:
    """Return the DeepSpeed engine with model, optimizer and schedule; collective over all ranks.

    Args:
        config: of the run.
        world_size: number of ranks.
        device: of this rank.
        initialize: whether to draw weights; otherwise they are NaN, and the caller loads all of them.
        told: called whenever a part of the model is built.
    """
    set_numerics(deterministic=config.training.deterministic)
    options = deepspeed_config(config, world_size)
    trainable = config.training.trainable
    partitioned = zero_stage(options) == 3
    model_config, seed = config.st_moe_config(), config.training.seed
    model = meta_model(model_config, config.parallel, known=partitioned or "experts" in TRAINABLE[trainable])
    freeze(model, trainable)
    numel = model.num_parameters()
    materialize(
        model,
        device,
        torch.bfloat16 if config.training.precision == "bf16" else torch.float32,
        initializer(model_config, seed, device, numel) if initialize else await_weights,
        zero3=options if partitioned else None,
        told=told,
    )
    if config.training.activation_checkpointing:
        model.activation_checkpointing_enable()
    if config.training.compile:
        compile_blocks(model)
    if partitioned:
        _keep_no_casts(model)
    optimizer = build_optimizer(model_parameter_specs(model), config.optimizer, model.get_input_embeddings().weight)
    bf16_optimizer.see_memory_usage = lambda *_, **__: None  # it prints a page about the memory of this host
    if options.get("comms_logger", {}).get("enabled"):
        prepare_comms_logger()
    import_muon()
    with weights_once():
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
