"""Everything that can be wrong and be known before a model is built: layout, files, vocabulary, data, resume."""

import functools
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from data.loader import PretrainingLoader
from data.tokenizer import Tokenizer
from data.unigram import count_targets
from data.validation import validation_batches
from training.config import ConfigError, RunConfig
from training.deepspeed_config import accumulation_steps, read_deepspeed_file, zero_stage
from training.layout import Layout
from training.run_lock import LOCK_FILE
from training.saved_state import Checkpoint, candidates, find_checkpoint

UNIGRAM_EXAMPLES = 4096  # training examples, over all ranks, that the unigram baseline counts

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Inputs:
    """What a run reads, opened and checked."""

    tokenizer: Tokenizer
    loader: PretrainingLoader
    target_counts: np.ndarray  # int64 [vocabulary], of this rank's part of the first training examples
    validation: list[Batch]
    zero_stage: int
    resume_from: Checkpoint | None


def check_expert_parallel(config: RunConfig, world_size: int) -> None:
    """Check that experts can be spread over the ranks. Raises ConfigError."""
    experts, size = config.st_moe_config().num_experts, config.parallel.expert_parallel_size
    key = f"parallel.expert_parallel_size = {size}"
    if size > 1 and not experts:
        raise ConfigError(f"{key} but model.num_experts = 0: a dense model has no experts to spread; set 1")
    if experts and experts % size:
        raise ConfigError(f"{key} does not divide model.num_experts = {experts}: set a divisor of {experts}")
    if world_size % size:
        raise ConfigError(
            f"{key} does not divide the world size {world_size}: start a multiple of {size} ranks "
            "(deepspeed --num_gpus), or set a divisor"
        )


def check_layout(config: RunConfig, world_size: int) -> int:
    """Check what depends on ranks and DeepSpeed's options; returns the ZeRO stage. Raises ConfigError."""
    check_expert_parallel(config, world_size)
    accumulation_steps(config, world_size)
    per_pass = config.training.micro_batch_size * world_size
    if config.training.eval_examples % per_pass:
        raise ConfigError(
            f"training.eval_examples = {config.training.eval_examples} is not divisible by training.micro_batch_size x "
            f"world size = {config.training.micro_batch_size} x {world_size}: set a multiple of {per_pass}"
        )
    size = config.parallel.expert_parallel_size
    options = read_deepspeed_file(config.training.deepspeed_config)
    check_optimizer(config, options)
    stage = zero_stage(options)
    if stage == 0 and size > 1 and config.optimizer.gradient_clipping:
        raise ConfigError(
            f"optimizer.gradient_clipping = {config.optimizer.gradient_clipping} with "
            f"parallel.expert_parallel_size = {size} is wrong under ZeRO stage 0 (each rank clips by its own experts' "
            "norm): use ds_configs/zero1.json, or set 0"
        )
    return int(stage)


def check_all_to_all(config: RunConfig, ranks_of_node: int) -> None:
    """Check that rows can travel to their experts as asked. Raises ConfigError."""
    parallel, experts = config.parallel, config.st_moe_config().num_experts
    size, chunks = parallel.expert_parallel_size, parallel.all_to_all_chunks
    key = f"parallel.expert_parallel_size = {size}"
    if parallel.expert_parallel_within_node and ranks_of_node % size:
        raise ConfigError(
            f"{key} does not divide the {ranks_of_node} ranks of a node, so experts would be spread over nodes: set a "
            f"divisor of {ranks_of_node}, or parallel.expert_parallel_within_node = false"
        )
    if chunks > 1 and size == 1:
        raise ConfigError(f"parallel.all_to_all_chunks = {chunks} but {key}: there is no all-to-all to divide; set 1")
    if experts // size % chunks:
        raise ConfigError(
            f"parallel.all_to_all_chunks = {chunks} does not divide the {experts // size} experts of a rank "
            f"(model.num_experts = {experts}, {key}): set a divisor of {experts // size}"
        )


def check_optimizer(config: RunConfig, options: dict[str, Any]) -> None:
    """Check that the optimizer can run here, and with these options of DeepSpeed's. Raises ConfigError."""
    name = config.optimizer.name
    key = f"optimizer.name = {name}"
    if name == "adamw_8bit":
        if find_spec("bitsandbytes") is None:
            raise ConfigError(
                f"{key} needs the package bitsandbytes: pip install -r requirements-8bit.txt, or set adafactor or adamw"
            )
        if not torch.cuda.is_available():
            raise ConfigError(f"{key} needs a CUDA device, and there is none here: set adafactor or adamw")
    zero = options.get("zero_optimization")
    zero = zero if isinstance(zero, dict) else {}
    offload = zero.get("offload_optimizer") or {}
    file = f"training.deepspeed_config = {config.training.deepspeed_config}: zero_optimization"
    if zero.get("compute_grad_norm") is False:
        raise ConfigError(f"{file}.compute_grad_norm = false: remove it, the norm tells gradients that are not finite")
    if name == "adamw":
        return
    unfit = {  # what steps an optimizer of DeepSpeed's own, or moves the optimizer's state
        "zenflow": bool(zero.get("zenflow")),
        "offload_optimizer.super_offload": bool(offload.get("super_offload")),
        "offload_optimizer.ratio": offload.get("ratio", 1.0) != 1.0,
        "offload_optimizer.device": offload.get("device") in (("nvme",) if name == "adafactor" else ("nvme", "cpu")),
    }
    for option in (option for option, is_unfit in unfit.items() if is_unfit):
        value = functools.reduce(dict.__getitem__, option.split("."), zero)
        raise ConfigError(f"{file}.{option} = {value} does not work with {key}: remove it, or set adamw")


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


def _say_nothing(_line: str) -> None:
    """Rank 0 says it."""


def prepare(config: RunConfig, layout: Layout, resume: bool, *, restart: bool = False) -> Inputs:
    """Open all inputs of a run.

    Args:
        config: of the run.
        layout: this process among all.
        resume: go on from the newest checkpoint.
        restart: go on from the newest checkpoint, or begin (anew) if the run never wrote one.

    Raises:
        ValueError: (ConfigError among them) one line that names key, value and fix.
    """
    stage = check_layout(config, layout.world_size)
    check_all_to_all(config, layout.local_world_size)
    saved = None
    if resume or (restart and candidates(config.run_dir)):
        # Sizes are for rank 0 to look at; afterwards the ranks agree on one that is whole: see agreement.py.
        first = layout.rank == 0
        report = _warn if first else _say_nothing
        saved = find_checkpoint(config, layout.world_size, stage, sizes=first, report=report)
    if not (resume or restart) and config.run_dir.exists() and {p.name for p in config.run_dir.iterdir()} - {LOCK_FILE}:
        raise ConfigError(
            f"training.name = {config.training.name}: {config.run_dir} already holds a run; add --resume to go on with "
            "it, or set another training.name"
        )
    tokenizer = Tokenizer(config.data.vocabulary)
    tokenizer.check_fits(config.st_moe_config().vocab_size)
    place: dict[str, Any] = {"rank": layout.rank, "world_size": layout.world_size}
    micro_batch_size = config.training.micro_batch_size
    loader = PretrainingLoader(config.data, tokenizer, batch_size=micro_batch_size, **place)
    if saved is not None:
        loader.load_state_dict(saved.state.data)
    without_workers = config.data.model_copy(update={"num_workers": 0})
    sample = PretrainingLoader(without_workers, tokenizer, batch_size=micro_batch_size, sources=loader.sources, **place)
    loader.start()
    batches = -(-UNIGRAM_EXAMPLES // (micro_batch_size * layout.world_size))
    return Inputs(
        tokenizer=tokenizer,
        loader=loader,
        target_counts=count_targets((sample.next_batch() for _ in range(batches)), tokenizer.vocab_size),
        validation=validation_batches(
            config.data,
            tokenizer,
            batch_size=micro_batch_size,
            num_batches=config.training.eval_examples // (micro_batch_size * layout.world_size),
            **place,
        ),
        zero_stage=stage,
        resume_from=saved,
    )
