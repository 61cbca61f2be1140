"""The training loop."""

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from model.size import count_parameters
from parallel.layer import take_traffic
from training.checkpoint.agreement import resume_together
from training.checkpoint.capture import Moment, load_checkpoint
from training.checkpoint.saver import Saved, SaveError, Saver
from training.checkpoint.store.publish import set_latest
from training.checkpoint.store.state import Checkpoint, describe_resume
from training.config.deepspeed import accumulation_steps
from training.config.run import RunConfig
from training.engine.batches import sum_over_ranks, to_device
from training.engine.build import build_engine
from training.engine.step import evaluate, update
from training.health.reaction import Health, UnhealthyError
from training.health.watchdog import Watchdog
from training.inputs import Inputs
from training.monitoring.metrics import MetricsWriter, PartsMean
from training.monitoring.optimizer_metrics import optimizer_metrics
from training.monitoring.progress import Progress
from training.run.folder import code_version, write_config, write_summary
from training.run.process import Process
from training.run.stopping import StopRequests
from training.summary import summarise, unigram_baseline


class Trainer:
    """One run, from the first (or resumed) step to the last. Every method is collective over all ranks.

    Args:
        config: the run's configuration.
        process: this process among all.
        inputs: data and checkpoint, opened by ``preflight.prepare``.
        device: of this rank; distributed communication is already initialised.
        launcher_gone: of ``stopping.watch_launcher``.
    """

    def __init__(
        self, config: RunConfig, process: Process, inputs: Inputs, device: str, launcher_gone: Callable[[], bool]
    ):
        self.config, self.process, self.inputs, self.device = config, process, inputs, device
        self.launcher_gone = launcher_gone
        self.watchdog = Watchdog(process.rank, process.world_size, config.training.timeout_seconds)
        self.watchdog.enter("checking the checkpoint", 0)
        resume = resume_together(config, process, inputs)
        self.watchdog.enter("building the model", 0 if resume is None else resume.state.step)
        self.model_config = config.st_moe_config()
        self.pad_id = int(self.model_config.pad_token_id or 0)
        self.accumulation = accumulation_steps(config, process.world_size)
        self.engine = build_engine(config, process.world_size, device)
        self.step = self.tokens = 0
        self.evaluated: list[float] | None = None
        if resume is not None:
            self.step, self.tokens, self.evaluated = resume.state.step, resume.state.tokens, resume.state.evaluated
        self.progress = Progress(config.training.steps, self.step, process.rank == 0)
        self.health = Health(config, self.engine, self._write, self.progress.say, self._settle)
        if resume is not None:
            self.progress.say(describe_resume(resume, config, process.world_size, inputs.zero_stage))
            load_checkpoint(self.engine, resume)
            self.health.guard.load_state_dict(resume.state.guard)
        self.validation = [to_device(batch, device) for batch in inputs.validation]
        self.writer: MetricsWriter | None = None
        if process.rank == 0:
            write_config(config)
            past = (None, 0) if resume is None else (resume.state.step, resume.state.metrics_bytes)
            self.writer = MetricsWriter(config.run_dir, *past)
        self.saved_step = self.step
        self.saver = Saver(config, device)
        for name in self.saver.abandoned:
            self.progress.say(f"removed {name}, which an interrupted save left")

    def train(self) -> bool:
        """Train to ``training.steps``, with evaluations and checkpoints on the way and at the end.

        Returns:
            Whether the run is done; False if it was asked to stop, and has written a checkpoint.

        Raises:
            DataError: the data cannot be read.
            UnhealthyError: the guard ended the run.
            SaveError: a checkpoint could not be written.
        """
        t = self.config.training
        started = self.window_start = time.monotonic()
        self.window_steps = self.window_tokens = 0
        self.window_wait = 0.0
        unigram = unigram_baseline(self.inputs, self.device)
        self._say_start(unigram)
        self.window_start = time.monotonic()
        self.stop_requests = StopRequests(self.config.run_dir if self.process.rank == 0 else None, self.launcher_gone)
        self.stopping = False
        if 0 < self.step < t.steps and self.step % t.eval_every == 0 and not self._is_evaluated():
            self.evaluate()  # a request to stop came before it
        while self.step < t.steps and not self.stopping:
            parts, good = self.train_step()
            self.progress.advance()
            if self.step % t.log_every == 0:
                self.log(parts)
            if good is not None:
                self.go_back(good)
                continue
            if self.step % t.eval_every == 0 and not self.stopping:
                self.evaluate()
            if self.step % t.save_every == 0 or self.stopping:
                self.save()
        if not self.stopping and not self._is_evaluated():
            self.evaluate()
        self._write_last()
        if self.stopping:
            self._say_stop()
        else:
            assert self.evaluated is not None
            self.finish(self.evaluated[1], unigram, time.monotonic() - started)
        return not self.stopping

    def train_step(self) -> tuple[PartsMean, Checkpoint | None]:
        """One update from ``accumulation`` micro-batches; and the checkpoint to go back to, if the guard says so."""
        self.watchdog.enter("reading data", self.step + 1)
        began = time.monotonic()
        batches = [to_device(self.inputs.loader.next_batch(), self.device) for _ in range(self.accumulation)]
        self.window_wait += time.monotonic() - began
        self.watchdog.enter("updating", self.step + 1)
        flags = (int(self.stop_requests.look() is not None), *self.saver.flags())
        seed, rank = self.config.training.seed, self.process.rank
        parts, counts = update(self.engine, batches, self.pad_id, seed, self.step, rank, flags=flags)
        self.step += 1
        self.tokens += counts.total
        self.window_steps += 1
        self.window_tokens += counts.total
        stop, busy, failed = counts.flags
        self.stopping = stop > 0
        self._note_save(self.saver.advance(busy, failed))
        try:
            return parts, self.health.check(self.step, parts, batches[0], counts.mean, rank)
        except UnhealthyError:
            self.log(parts)  # the last row says what was wrong
            raise

    def go_back(self, checkpoint: Checkpoint) -> None:
        """To an earlier checkpoint, but not in the data: what was read since is left out."""
        self._settle()
        load_checkpoint(self.engine, checkpoint)
        self.step, self.tokens = checkpoint.state.step, checkpoint.state.tokens
        self.evaluated, self.saved_step = checkpoint.state.evaluated, checkpoint.state.step
        if self.process.rank == 0:
            set_latest(checkpoint.folder)  # later ones are of what the run goes back from
        self._restart_window()

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
        self._write(row)
        self.progress.row(row)
        self._restart_window()

    def evaluate(self) -> None:
        """Cross-entropy in nats per target token of the held-out examples, the same ones every time."""
        self.watchdog.enter("evaluating", self.step)
        parts = evaluate(self.engine, self.validation, self.pad_id, self.config.training.seed, self.process.rank)
        values = parts.reduce(self.model_config)
        self._write({"split": "validation", "step": self.step, "tokens": self.tokens, **values})
        self.progress.say(f"step {self.step}  validation cross-entropy {values['cross_entropy']:.4f}")
        self.evaluated = [self.step, values["cross_entropy"]]
        self._restart_window()

    def save(self) -> None:
        """Begin a checkpoint, after the one that may be on its way."""
        self._settle()
        self.watchdog.enter("copying a checkpoint", self.step)
        self.saver.start(
            self.engine,
            Moment(
                step=self.step,
                tokens=self.tokens,
                data=self.inputs.loader.state_dict(),
                guard=self.health.guard.state_dict(),
                evaluated=self.evaluated,
                metrics_bytes=0 if self.writer is None else self.writer.nbytes,
                code=code_version(),
            ),
        )
        self.saved_step = self.step
        if not self.config.training.save_in_background:
            self._settle()
        self._restart_window()

    def _settle(self) -> None:
        """Wait for a checkpoint that is on its way."""
        self._note_save(self.saver.wait(lambda: self.watchdog.enter("waiting for a checkpoint", self.step)))

    def _write_last(self) -> None:
        """Wait until the present step is in a checkpoint. Raises SaveError if it cannot be, in any case."""
        self._settle()
        if self.saved_step != self.step:
            self.save()
            self._settle()
        if self.saved_step != self.step:
            raise SaveError(f"the last checkpoint, of step {self.step}, could not be written: see above")

    def _note_save(self, saved: Saved | None) -> None:
        if saved is None:
            return
        row = {"split": "checkpoint", "step": saved.step, "stall_seconds": saved.stall_seconds,
               "save_seconds": saved.seconds, "rank_bytes": saved.nbytes}  # fmt: skip
        if saved.error is None:
            self._write(row)
            self.progress.say(
                f"step {saved.step}  checkpoint {saved.folder}, {saved.seconds:.1f} s, of which training waited "
                f"{saved.stall_seconds:.2f} s{''.join(f'; removed {name}' for name in saved.pruned)}"
            )
            return
        self._write(row | {"error": saved.error})
        self.saved_step = -1
        text = f"checkpoint {saved.folder} could not be written: {saved.error}"
        if self.config.training.on_save_error == "stop":
            raise SaveError(f"{text}; the one before it is whole")
        self.progress.say(f"warning: {text}; going on (training.on_save_error)")

    def finish(self, validation_cross_entropy: float, unigram: float, wall_seconds: float) -> None:
        """Write the summary and say what came out."""
        self.inputs.loader.close()
        summary = summarise(
            self.config,
            self.inputs,
            steps=self.step,
            tokens=self.tokens,
            validation_cross_entropy=validation_cross_entropy,
            unigram_cross_entropy=unigram,
            wall_seconds=wall_seconds,
        )
        if self.writer is not None:
            write_summary(self.config, summary)
            self.writer.close()
        self.progress.close()
        if summary["bad_rows"]:
            skipped = ", ".join(f"{n} {kind}" for kind, n in summary["bad_rows"].items())
            self.progress.say(f"skipped data lines: {skipped}")

    @property
    def learning_rate(self) -> float:
        """That of the last update."""
        schedule = self.engine.lr_scheduler  # it does not count updates that were left out
        return float(schedule.lr_lambdas[0](max(0, schedule.last_epoch - 1)) * self.config.optimizer.learning_rate)

    def _write(self, row: dict[str, Any]) -> None:
        if self.writer is not None:
            self.writer.write(row)

    def _is_evaluated(self) -> bool:
        return self.evaluated is not None and self.evaluated[0] == self.step

    def _say_stop(self) -> None:
        reason = self.stop_requests.reason or "a request to another rank"
        self.stop_requests.obeyed()
        self.inputs.loader.close()
        self.progress.close()
        self.progress.say(f"stopped after step {self.step} by {reason}; --resume goes on from there")

    def _restart_window(self) -> None:
        self.window_start, self.window_steps, self.window_tokens, self.window_wait = time.monotonic(), 0, 0, 0.0
        take_traffic(self.engine.module)  # of evaluations

    def _say_start(self, unigram: float) -> None:
        total, active = count_parameters(self.model_config)
        t, ranks = self.config.training, self.process.world_size
        self.progress.say(
            f"{total:,} parameters, {active:,} active per token; {ranks} ranks, expert parallel size "
            f"{self.config.parallel.expert_parallel_size}, ZeRO {self.inputs.zero_stage}, {t.precision}, "
            f"{self.accumulation} micro-batches of {t.micro_batch_size} per rank and step; "
            f"steps {self.step} to {t.steps}; unigram cross-entropy {unigram:.4f}"
        )


def _number(value: Tensor | float | None) -> float:
    return float("nan") if value is None else float(value)
