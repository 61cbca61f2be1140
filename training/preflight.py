"""Everything that can be wrong and be known before a model is built: layout, files, vocabulary, data, resume."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.loader import PretrainingLoader
from data.tokenizer import Tokenizer
from data.unigram import count_targets
from data.validation import validation_batches
from training.checkpoint import SavedState, find_checkpoint
from training.config import ConfigError, RunConfig
from training.deepspeed_config import accumulation_steps, read_deepspeed_file, zero_stage
from training.layout import Layout

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
    resume_from: SavedState | None


def check_layout(config: RunConfig, world_size: int) -> int:
    """Check what depends on the number of ranks; returns the ZeRO stage. Raises ConfigError."""
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
    accumulation_steps(config, world_size)
    per_pass = config.training.micro_batch_size * world_size
    if config.training.eval_examples % per_pass:
        raise ConfigError(
            f"training.eval_examples = {config.training.eval_examples} is not divisible by training.micro_batch_size x "
            f"world size = {config.training.micro_batch_size} x {world_size}: set a multiple of {per_pass}"
        )
    stage = zero_stage(read_deepspeed_file(config.training.deepspeed_config))
    if stage == 0 and size > 1 and config.optimizer.gradient_clipping:
        raise ConfigError(
            f"optimizer.gradient_clipping = {config.optimizer.gradient_clipping} with {key} is wrong under ZeRO stage "
            "0 (each rank clips by its own experts' norm): use ds_configs/zero1.json, or set 0"
        )
    return int(stage)


def prepare(config: RunConfig, layout: Layout, resume: bool) -> Inputs:
    """Open all inputs of a run.

    Raises:
        ValueError: (ConfigError among them) one line that names key, value and fix.
    """
    stage = check_layout(config, layout.world_size)
    saved = find_checkpoint(config, layout.world_size, stage) if resume else None
    if not resume and config.run_dir.exists() and any(config.run_dir.iterdir()):
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
        loader.load_state_dict(saved.data)
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
