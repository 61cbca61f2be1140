"""Everything that a run reads, opened and checked before the model is built: vocabulary, data, checkpoint."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.streaming.loader import PretrainingLoader
from data.streaming.task_validation import task_validation_batches
from data.streaming.validation import validation_batches
from data.tokenizer import Tokenizer
from data.unigram import count_targets
from training.checkpoint.initial.fitting import find_source
from training.checkpoint.initial.source import Source
from training.checkpoint.resume import check_same_vocabulary, find_checkpoint
from training.checkpoint.store.layout import ParallelLayout
from training.checkpoint.store.state import Checkpoint, candidates
from training.config.checks import check_all_to_all, check_layout
from training.config.run import RunConfig
from training.run.lock import check_new
from training.run.process import Process
from training.tasks.of_run import asked_in_training
from training.tasks.questions import Asked

UNIGRAM_EXAMPLES = 4096  # training examples, over all ranks, that the unigram baseline counts

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Inputs:
    """The opened and checked inputs of a run."""

    tokenizer: Tokenizer
    loader: PretrainingLoader
    target_counts: np.ndarray  # int64 [vocab_size], of this rank's share of the first training examples
    validation: list[Batch]
    domains: list[str]  # of the validation text, or tasks, whose cross-entropy is reported
    asked: list[Asked]  # held-out examples whose answers are scored
    zero_stage: int
    resume_from: Checkpoint | None
    init_from: Source | None  # of a new run


def prepare(config: RunConfig, process: Process, resume: bool, *, restart: bool = False) -> Inputs:
    """Open all inputs of a run, without torch or DeepSpeed.

    Args:
        config: of the run.
        process: this process among all.
        resume: continue from the newest checkpoint.
        restart: continue from the newest checkpoint, or begin the run if it has none.

    Raises:
        ValueError: one line that names key, value and fix; ConfigError or DataError as a rule.
    """
    continues = resume or (restart and bool(candidates(config.run_dir)))
    stage = check_layout(config, process.world_size)
    check_all_to_all(config, process.local_world_size)
    saved = None
    if continues:
        # Rank 0 checks the sizes of the files. Later the ranks agree on an intact checkpoint: see agreement.py.
        first = process.rank == 0
        saved = find_checkpoint(config, process.world_size, stage, sizes=first)
    if not (resume or restart):
        check_new(config.run_dir)
    tokenizer = Tokenizer(config.data.vocabulary)
    tokenizer.check_fits(config.architecture().vocab_size)
    if saved is not None:
        check_same_vocabulary(config, saved, tokenizer)
    layout = ParallelLayout.of(config.model_dump(), process.world_size, stage)
    source = find_source(config, tokenizer, layout) if saved is None else None
    ranks: dict[str, Any] = {"rank": process.rank, "world_size": process.world_size}
    micro_batch_size = config.training.micro_batch_size
    loader = PretrainingLoader(config.data, tokenizer, batch_size=micro_batch_size, **ranks)
    if saved is not None:
        loader.load_state_dict(saved.state.data)
    without_workers = config.data.model_copy(update={"num_workers": 0})
    sample = PretrainingLoader(without_workers, tokenizer, batch_size=micro_batch_size, sources=loader.sources, **ranks)
    loader.start()
    batches = -(-UNIGRAM_EXAMPLES // (micro_batch_size * process.world_size))
    validation, domains = _held_out(config, tokenizer, process)
    return Inputs(
        tokenizer=tokenizer,
        loader=loader,
        target_counts=count_targets((sample.next_batch() for _ in range(batches)), tokenizer.vocab_size),
        validation=validation,
        domains=domains,
        asked=asked_in_training(config),
        zero_stage=stage,
        resume_from=saved,
        init_from=source,
    )


def _held_out(config: RunConfig, tokenizer: Tokenizer, process: Process) -> tuple[list[Batch], list[str]]:
    """Return this rank's held-out batches, and the domains, or tasks, whose cross-entropy is reported."""
    data, size, examples = config.data, config.training.micro_batch_size, config.training.eval_examples
    ranks: dict[str, Any] = {"rank": process.rank, "world_size": process.world_size, "batch_size": size}
    if data.objective == "tasks":
        return task_validation_batches(data, tokenizer, limit=examples, **ranks)
    number = examples // (size * process.world_size)
    batches = validation_batches(data, tokenizer, num_batches=number, launch=process.on_this_host, **ranks)
    return batches, data.validation_domains()
