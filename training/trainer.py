"""The training loop."""

import time
from collections import Counter
from typing import Any

import deepspeed.comm as dist
import torch
from torch import Tensor

from data.unigram import count_targets, unigram_cross_entropy
from model.size import count_parameters
from parallel.layer import take_traffic
from training.batches import sum_over_ranks, to_device
from training.build import build_engine
from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import RunConfig
from training.deepspeed_config import accumulation_steps
from training.layout import Layout
from training.metrics import MetricsWriter, PartsMean
from training.optimizer_metrics import optimizer_metrics
from training.preflight import Inputs
from training.progress import Progress
from training.run_folder import write_config, write_summary
from training.saved_state import describe_resume
from training.update import evaluate, update


class Trainer:
    """One run, from the first (or resumed) step to the last. Every method is collective over all ranks.

    Args:
        config: the run's configuration.
        layout: this process among all.
        inputs: data and checkpoint, opened by ``preflight.prepare``.
        device: of this rank; distributed communication is already initialised.
    """

    def __init__(self, config: RunConfig, layout: Layout, inputs: Inputs, device: str):
        self.config, self.layout, self.inputs, self.device = config, layout, inputs, device
        self.model_config = config.st_moe_config()
        self.pad_id = int(self.model_config.pad_token_id or 0)
        self.accumulation = accumulation_steps(config, layout.world_size)
        self.engine = build_engine(config, layout.world_size, device)
        self.step = self.tokens = 0
        resume = inputs.resume_from
        if resume is not None:
            self.step, self.tokens = resume.state.step, resume.state.tokens
        self.progress = Progress(config.training.steps, self.step, layout.rank == 0)
        if resume is not None:
            self.progress.say(describe_resume(resume, config, layout.world_size, inputs.zero_stage))
            load_checkpoint(self.engine, resume)
        self.validation = [to_device(batch, device) for batch in inputs.validation]
        self.writer: MetricsWriter | None = None
        if layout.rank == 0:
            write_config(config)
            self.writer = MetricsWriter(config.run_dir, None if resume is None else resume.state.step)
        self.saved_step = self.step

    def train(self) -> None:
        """Train to ``training.steps``, with evaluations and checkpoints on the way and at the end."""
        t = self.config.training
        started = self.window_start = time.monotonic()
        self.window_steps = self.window_tokens = 0
        self.window_wait = 0.0
        unigram = self.unigram_cross_entropy()
        self._say_start(unigram)
        self.window_start = time.monotonic()
        evaluated: tuple[int, float] | None = None
        while self.step < t.steps:
            parts = self.train_step()
            self.progress.advance()
            if self.step % t.log_every == 0:
                self.log(parts)
            if self.step % t.eval_every == 0:
                evaluated = (self.step, self.evaluate())
            if self.step % t.save_every == 0:
                self.save()
        if evaluated is None or evaluated[0] != self.step:
            evaluated = (self.step, self.evaluate())
        if self.saved_step != self.step:
            self.save()
        self.finish(evaluated[1], unigram, time.monotonic() - started)

    def train_step(self) -> PartsMean:
        """One update from ``accumulation`` micro-batches."""
        began = time.monotonic()
        batches = [to_device(self.inputs.loader.next_batch(), self.device) for _ in range(self.accumulation)]
        self.window_wait += time.monotonic() - began
        parts, counts = update(
            self.engine, batches, self.pad_id, self.config.training.seed, self.step, self.layout.rank
        )
        self.step += 1
        self.tokens += counts.total
        self.window_steps += 1
        self.window_tokens += counts.total
        if self.config.optimizer.non_finite == "stop" and not self.engine.was_step_applied():
            self.log(parts)  # the last row says what was not finite
            raise FloatingPointError(
                f"the gradient of step {self.step} is not finite, and optimizer.non_finite = stop; no update was made"
            )
        return parts

    def log(self, parts: PartsMean) -> None:
        """Write this step's row; rates, seconds and bytes are rank 0's means since the last row."""
        values = parts.reduce(self.model_config)
        seconds = time.monotonic() - self.window_start
        all_to_all_bytes, all_to_all_seconds = take_traffic(self.engine.module)
        row = {
            "step": self.step,
            "tokens": self.tokens,
            **values,
            "learning_rate": self.learning_rate,
            "grad_norm": _number(self.engine.get_global_grad_norm()),
            "skipped_steps": self.engine.skipped_steps,
            **optimizer_metrics(self.engine),
            "tokens_per_second": self.window_tokens / seconds,
            "step_seconds": seconds / self.window_steps,
            "data_seconds": self.window_wait / self.window_steps,
            "all_to_all_bytes": all_to_all_bytes / self.window_steps,
            "all_to_all_seconds": all_to_all_seconds / self.window_steps,
            **sum_over_ranks(self.inputs.loader.metrics(), self.device),
        }
        if self.writer is not None:
            self.writer.write(row)
        self.progress.row(row)
        self._restart_window()

    def evaluate(self) -> float:
        """Cross-entropy in nats per target token of the held-out examples, the same ones every time."""
        parts = evaluate(self.engine, self.validation, self.pad_id, self.config.training.seed, self.layout.rank)
        values = parts.reduce(self.model_config)
        if self.writer is not None:
            self.writer.write({"split": "validation", "step": self.step, "tokens": self.tokens, **values})
        self.progress.say(f"step {self.step}  validation cross-entropy {values['cross_entropy']:.4f}")
        self._restart_window()
        return values["cross_entropy"]

    def save(self) -> None:
        """Write a checkpoint."""
        state = self.inputs.loader.state_dict()
        path = save_checkpoint(self.engine, self.config, step=self.step, tokens=self.tokens, data_state=state)
        self.saved_step = self.step
        self.progress.say(f"step {self.step}  checkpoint {path}")
        self._restart_window()

    def unigram_cross_entropy(self) -> float:
        """Nats per validation target of the best guess without context: training frequencies of the targets."""
        validation = count_targets(self.inputs.validation, self.inputs.tokenizer.vocab_size)
        counts = [torch.from_numpy(count).to(self.device) for count in (self.inputs.target_counts, validation)]
        for count in counts:
            dist.all_reduce(count)
        return unigram_cross_entropy(counts[0].cpu().numpy(), counts[1].cpu().numpy())

    def finish(self, validation_cross_entropy: float, unigram: float, wall_seconds: float) -> None:
        """Write the summary and say what came out."""
        self.inputs.loader.close()
        total, active = count_parameters(self.model_config)
        bad_rows: list[Any] = [None] * self.layout.world_size
        dist.all_gather_object(bad_rows, self.inputs.loader.bad_rows)
        skipped = dict(sum((Counter(rows) for rows in bad_rows), Counter()))
        if self.writer is not None:
            write_summary(
                self.config,
                {
                    "world_size": self.layout.world_size,
                    "expert_parallel_size": self.config.parallel.expert_parallel_size,
                    "zero_stage": self.inputs.zero_stage,
                    "parameters_total": total,
                    "parameters_active_per_token": active,
                    "steps": self.step,
                    "tokens": self.tokens,
                    "validation_cross_entropy": validation_cross_entropy,
                    "unigram_cross_entropy": unigram,
                    "wall_seconds": wall_seconds,
                    "bad_rows": skipped,
                },
            )
            self.writer.close()
        self.progress.close()
        if skipped:
            self.progress.say(f"skipped data lines: {', '.join(f'{n} {kind}' for kind, n in skipped.items())}")

    @property
    def learning_rate(self) -> float:
        """That of the last update."""
        schedule = self.engine.lr_scheduler  # it does not count updates that were left out
        return float(schedule.lr_lambdas[0](max(0, schedule.last_epoch - 1)) * self.config.optimizer.learning_rate)

    def _restart_window(self) -> None:
        self.window_start, self.window_steps, self.window_tokens, self.window_wait = time.monotonic(), 0, 0, 0.0
        take_traffic(self.engine.module)  # of evaluations

    def _say_start(self, unigram: float) -> None:
        total, active = count_parameters(self.model_config)
        t, ranks = self.config.training, self.layout.world_size
        self.progress.say(
            f"{total:,} parameters, {active:,} active per token; {ranks} ranks, expert parallel size "
            f"{self.config.parallel.expert_parallel_size}, ZeRO {self.inputs.zero_stage}, {t.precision}, "
            f"{self.accumulation} micro-batches of {t.micro_batch_size} per rank and step; "
            f"steps {self.step} to {t.steps}; unigram cross-entropy {unigram:.4f}"
        )


def _number(value: Tensor | float | None) -> float:
    return float("nan") if value is None else float(value)
