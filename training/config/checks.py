"""Checks of a configuration that depend on the number of ranks, on DeepSpeed's options or on this machine."""

import functools
import math
import os
import shutil
from importlib.util import find_spec
from typing import Any

from common.text import counted, most_divisor
from training.config.deepspeed import accumulation_steps, read_deepspeed_file, zero_stage
from training.config.errors import ConfigError
from training.config.run import RunConfig

# Output heads of other sizes fit the tiles of matrix multiplications on GPUs badly; T5 pads to it, too.
VOCABULARY_MULTIPLE = 128


def give_advice(config: RunConfig) -> list[str]:
    """Return a line for each setting that works, but is hardly what was meant."""
    rows = config.architecture().vocab_size
    if rows % VOCABULARY_MULTIPLE == 0:
        return []
    padded = -(-rows // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    return [
        f"model.vocab_size = {rows} is not a multiple of {VOCABULARY_MULTIPLE}: GPUs multiply by it more slowly; "
        f"{padded} adds rows that no token uses"
    ]


def check_expert_parallel(config: RunConfig, world_size: int, option: str | None = None) -> None:
    """Check that experts can be spread over the ranks. Raises ConfigError; for ``option`` see ``check_layout``."""
    experts, size = config.architecture().num_experts, config.parallel.expert_parallel_size
    key = f"parallel.expert_parallel_size = {size}"
    if size > 1 and not experts:
        raise ConfigError(f"{key} but model.num_experts = 0: a dense model has no experts to spread; set 1")
    if experts and experts % size:
        raise ConfigError(f"{key} does not divide model.num_experts = {experts}: set a divisor of {experts}")
    if world_size % size:
        whole = f"{option} {world_size}" if option else f"the world size {world_size}"
        start = f"start a multiple of {size} ranks (deepspeed --num_gpus), or set"
        more = f"set {option} to a multiple of {size}, or" if option else start
        best = math.gcd(world_size, experts)
        raise ConfigError(f"{key} does not divide {whole}: {more} parallel.expert_parallel_size={best}")


def check_layout(config: RunConfig, world_size: int, *, here: bool = True, option: str | None = None) -> int:
    """Check the parallel layout, the batch sizes and DeepSpeed's options.

    Args:
        config: of the run.
        world_size: number of ranks.
        here: whether this machine must have what the run needs; not where a run on others is planned.
        option: of the command line, that gives the number of ranks, for messages; None: the launcher does.

    Returns:
        The ZeRO stage.

    Raises:
        ConfigError: names key, value and fix.
    """
    check_expert_parallel(config, world_size, option)
    accumulation_steps(config, world_size, option)
    per_pass = config.training.micro_batch_size * world_size
    if config.data.objective != "tasks" and config.training.eval_examples % per_pass:
        raise ConfigError(
            f"training.eval_examples = {config.training.eval_examples} is not divisible by training.micro_batch_size x "
            f"{option or 'world size'} = {config.training.micro_batch_size} x {world_size}: set a multiple of "
            f"{per_pass}{_smaller_micro_batch(config, world_size)}"
        )
    ranks = config.training.profile.ranks
    if config.training.profile.steps is not None and max(ranks) >= world_size:
        last = world_size - 1
        raise ConfigError(f"training.profile.ranks = {ranks}: the last of {counted(world_size, 'rank')} is {last}")
    options = read_deepspeed_file(config.training.deepspeed_config)
    check_optimizer(config, options, here=here)
    stage = zero_stage(options)
    check_gradient_dtypes(config, stage, world_size)
    check_compile(config, stage, here=here)
    parameters = options.get("zero_optimization", {}).get("offload_param") or {}
    if config.training.trainable != "all" and parameters.get("device") == "nvme":
        raise ConfigError(
            f"training.deepspeed_config = {config.training.deepspeed_config}: zero_optimization.offload_param.device = "
            f"nvme does not work with training.trainable = {config.training.trainable}: set cpu, or all"
        )
    return stage


def _smaller_micro_batch(config: RunConfig, world_size: int) -> str:
    """Return ``, or training.micro_batch_size=…`` with one that divides the sequences of a step and of an evaluation.

    Nothing if there is none.
    """
    t = config.training
    sequences = math.gcd(t.eval_examples, t.global_batch_size)
    if sequences % world_size:
        return ""
    return f", or training.micro_batch_size={most_divisor(sequences // world_size, t.micro_batch_size)}"


def check_gradient_dtypes(config: RunConfig, stage: int, world_size: int) -> None:
    """Check that DeepSpeed can sum gradients as the training section says. Raises ConfigError."""
    t = config.training
    key = f"training.gradient_accumulate_dtype = {t.gradient_accumulate_dtype}"
    if t.gradient_accumulate_dtype == "bf16" and t.precision != "bf16":
        raise ConfigError(
            f"{key} contradicts training.precision = {t.precision}, whose gradients are fp32: set fp32, or "
            "training.precision = bf16"
        )
    several = accumulation_steps(config, world_size) > 1
    if stage == 0 and t.precision == "bf16" and t.gradient_accumulate_dtype == "fp32" and several:
        raise ConfigError(
            f"{key} with training.precision = bf16 needs ZeRO (DeepSpeed's stage 0 sums the gradients of micro-batches "
            "in the weights' bf16): use ds_configs/zero1.json, or set bf16"
        )


def check_compile(config: RunConfig, stage: int, *, here: bool = True) -> None:
    """Check that blocks can be compiled, and by this machine if the run is ``here``. Raises ConfigError."""
    if not config.training.compile:
        return
    if stage == 3:
        raise ConfigError(
            "training.compile = true does not work under ZeRO stage 3, which gathers weights in Python between the "
            "operations of a block: use ds_configs/zero2.json, or set false"
        )
    compiler = os.environ.get("CXX", "g++")
    if here and shutil.which(compiler) is None:
        raise ConfigError(
            f"training.compile = true needs a C++ compiler, and there is no {compiler} here: install g++, name another "
            "in the environment variable CXX, or set false"
        )


def check_all_to_all(config: RunConfig, ranks_of_node: int) -> None:
    """Check that tokens can travel to their experts as the parallel section says. Raises ConfigError."""
    parallel, experts = config.parallel, config.architecture().num_experts
    size, chunks = parallel.expert_parallel_size, parallel.all_to_all_chunks
    key = f"parallel.expert_parallel_size = {size}"
    if parallel.expert_parallel_within_node and ranks_of_node % size:
        raise ConfigError(
            f"{key} does not divide the {counted(ranks_of_node, 'rank')} of a node, so experts would be "
            f"spread over nodes: set a divisor of {ranks_of_node}, or parallel.expert_parallel_within_node = false"
        )
    if chunks > 1 and size == 1:
        raise ConfigError(f"parallel.all_to_all_chunks = {chunks} but {key}: there is no all-to-all to divide; set 1")
    if experts // size % chunks:
        raise ConfigError(
            f"parallel.all_to_all_chunks = {chunks} does not divide the {counted(experts // size, 'expert')} of a rank "
            f"(model.num_experts = {experts}, {key}): set a divisor of {experts // size}"
        )


def check_optimizer(config: RunConfig, options: dict[str, Any], *, here: bool = True) -> None:
    """Check that the optimizer can run with these DeepSpeed options and, if ``here``, on this machine.

    Raises:
        ConfigError: it cannot.
    """
    name = config.optimizer.name
    key = f"optimizer.name = {name}"
    if here and name == "adamw_8bit":
        if find_spec("bitsandbytes") is None:
            raise ConfigError(
                f"{key} needs the package bitsandbytes: pip install -r requirements-8bit.txt, or set adafactor or adamw"
            )
        import torch  # takes seconds, and only this branch needs it

        if not torch.cuda.is_available():
            raise ConfigError(f"{key} needs a CUDA device, and there is none here: set adafactor or adamw")
    zero = options.get("zero_optimization", {})
    offload = zero.get("offload_optimizer") or {}
    file = f"training.deepspeed_config = {config.training.deepspeed_config}: zero_optimization"
    if zero.get("compute_grad_norm") is False:
        raise ConfigError(f"{file}.compute_grad_norm = false: remove it: the norm shows when gradients are not finite")
    if name == "adamw":
        return
    unfit = {  # these options step an optimizer of DeepSpeed's own, or move the optimizer's state
        "zenflow": bool(zero.get("zenflow")),
        "offload_optimizer.super_offload": bool(offload.get("super_offload")),
        "offload_optimizer.ratio": offload.get("ratio", 1.0) != 1.0,
        "offload_optimizer.device": offload.get("device") in (("nvme",) if name == "adafactor" else ("nvme", "cpu")),
    }
    for option in (option for option, is_unfit in unfit.items() if is_unfit):
        value = functools.reduce(dict.__getitem__, option.split("."), zero)
        raise ConfigError(f"{file}.{option} = {value} does not work with {key}: remove it, or set adamw")
