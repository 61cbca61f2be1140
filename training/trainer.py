"""The training loop."""

import time
from collections.abc import Callable

from common.logs import get_logger
from common.project import code_version
from training.checkpoint.agreement import agree_on_checkpoint
from training.checkpoint.capture import Moment
from training.checkpoint.checkpointer import Checkpointer, SaveError
from training.checkpoint.finite import NotFiniteError
from training.checkpoint.initial.begin import begin_with
from training.checkpoint.initial.readers import open_source
from training.checkpoint.load import load_checkpoint
from training.checkpoint.resume import check_fits, describe_resume
from training.checkpoint.store.layout import ParallelLayout
from training.checkpoint.store.state import Checkpoint
from training.config.deepspeed import accumulation_steps
from training.config.run import RunConfig
from training.engine.batches import to_device
from training.engine.build import build_engine
from training.engine.loss_terms import LossTerms
from training.engine.parameters import trained_numel
from training.engine.profiling import StepProfiler, report_communication
from training.engine.step import update
from training.evaluation import make_evaluator
from training.health.reaction import Health, RollBack, UnhealthyError
from training.inputs import Inputs
from training.monitoring.examples import HeldOutExamples
from training.monitoring.monitors.all import Monitors
from training.monitoring.tensorboard.hparams import hyperparameters
from training.monitoring.terminal.progress import Progress
from training.monitoring.terminal.tables import end_table, start_table
from training.monitoring.writer import MetricsWriter
from training.run.folder import RunFolder
from training.run.kept_inputs import keep_inputs
from training.run.process import Process
from training.run.stopping import StopRequests
from training.run.watchdog import Watchdog
from training.state import Evaluation, TrainState
from training.summary import summarize, unigram_baseline

logger = get_logger(__name__)


class Trainer:
    """One run, from the first (or resumed) step to the last. The public methods are collective over all ranks.

    Args:
        config: the run's configuration.
        process: this process among all.
        inputs: data and checkpoint, opened by ``inputs.prepare``.
        device: of this rank; distributed communication is already initialized.
        launcher_gone: from ``stopping.watch_launcher``.
        watchdog: told of phases.
    """

    def __init__(
        self,
        config: RunConfig,
        process: Process,
        inputs: Inputs,
        device: str,
        launcher_gone: Callable[[], bool],
        watchdog: Watchdog,
    ):
        self.config, self.process, self.inputs, self.device = config, process, inputs, device
        self.folder = RunFolder(config.run_dir)
        self.watchdog = watchdog
        self.state = TrainState()
        self.watchdog.enter("checking the checkpoint", 0)
        resume = self._agree_on_resume()
        if resume is not None:
            self.state.restore(resume.state)
        weights = None
        if inputs.init_from is not None:
            key = f"training.init_from = {config.training.init_from}"
            weights = open_source(inputs.init_from, config.st_moe_config(), key)
        self.watchdog.enter("building the model", self.state.step)
        self.model_config = config.st_moe_config()
        self.pad_id = int(self.model_config.pad_token_id or 0)
        self.accumulation = accumulation_steps(config, process.world_size)
        loads = resume is not None or weights is not None
        self.engine = build_engine(config, process.world_size, device, initialize=not loads, told=self.watchdog.advance)
        self.progress = Progress(config.training.steps, process.rank == 0)
        if resume is not None:
            layout = ParallelLayout.of(config.model_dump(), process.world_size, inputs.zero_stage)
            logger.info("%s", describe_resume(resume, layout))
            load_checkpoint(self.engine, resume)
        elif weights is not None:
            begin_with(self.engine, weights, config)
        self.validation = [to_device(batch, device) for batch in inputs.validation]
        self.evaluator = make_evaluator(self.engine, config, self.validation, inputs, watchdog, self.state)
        if process.rank == 0:
            self.folder.write_config(config)
            keep_inputs(config.run_dir, config, inputs.tokenizer)
        step, nbytes = (None, 0) if resume is None else (resume.state.step, resume.state.metrics_bytes)
        self.metrics = MetricsWriter(
            self.folder,
            enabled=process.rank == 0,
            resume_step=step,
            resume_bytes=nbytes,
            hyperparameters=hyperparameters(config.model_dump()),
            pictures=config.training.monitor.pictures,
            monitor=self.engine.monitor,
            batch_size=config.training.global_batch_size,
        )
        shown = config.training.monitor.examples if process.rank == 0 else 0
        self.examples = HeldOutExamples(shown, self.engine.module, inputs.tokenizer)
        self.checkpointer = Checkpointer(config, device, self.metrics, self.watchdog, self.state.step)
        self.health = Health(config, self.engine, self.metrics, self.checkpointer, process.rank)
        if resume is not None:
            self.health.guard.load_state_dict(resume.state.guard)
        self.monitors = Monitors(config, self.model_config, self.engine, inputs.loader, device)
        self.throughput = self.monitors.throughput
        self.monitors.restart({} if resume is None else resume.state.routing)
        self.profiler = StepProfiler(config.training.profile, self.folder.profile, process.rank, device)
        self.seconds_before = 0.0 if resume is None else resume.state.seconds
        self.started = time.monotonic()
        self.stop_requests = StopRequests(self.folder.stop_file if process.rank == 0 else None, launcher_gone)
        self.stopping = False
        self.compiled = False  # whether a step has been made, and so blocks compiled if training.compile is true

    def train(self) -> bool:
        """Call ``_train``, and note how the run ended unless it was only asked to stop."""
        try:
            done = self._train()
        except Exception:
            self.metrics.end(success=False)
            raise
        if done:
            self.metrics.end(success=True)
        self.metrics.close()
        return done

    def _train(self) -> bool:
        """Train to ``training.steps``, with evaluations and checkpoints on the way and at the end.

        Returns:
            Whether the run is done; False if it was asked to stop, and has written a checkpoint.

        Raises:
            DataError: the data cannot be read.
            UnhealthyError: the guard ended the run, or weights or the validation loss are not finite.
            SaveError: a checkpoint could not be written.
        """
        t, state = self.config.training, self.state
        unigram = unigram_baseline(self.inputs, self.device)
        self._announce(unigram)
        self.throughput.restart()
        if self.inputs.init_from is not None:
            self.evaluate()  # what the weights are worth before the first step
        if 0 < state.step < t.steps and state.step % t.eval_every == 0 and not state.is_evaluated:
            self.evaluate()  # a request to stop came before it
        while state.step < t.steps and not self.stopping:
            with self.profiler.step(state.step + 1):
                terms, roll_back = self.train_step()
            self.progress.advance(state.step)
            if state.step % t.log_every == 0:
                self.log(terms)
            if roll_back is not None:
                self.roll_back(roll_back)
                continue
            is_due = (state.step % t.eval_every == 0 or state.step == t.steps) and not self.stopping
            is_best = is_due and self.evaluate()  # before the checkpoint of this step, which then knows its row
            if state.step % t.save_every == 0 or self.stopping or is_best:
                self.save()
        if not self.stopping and not state.is_evaluated:
            self.evaluate()
        self._save_last()
        if self.stopping:
            self._announce_stop()
        else:
            self._finish(unigram)
        return not self.stopping

    def train_step(self) -> tuple[LossTerms, RollBack | None]:
        """Make one optimizer step from ``accumulation`` micro-batches.

        Returns:
            The terms of its loss; the roll-back that the guard demands, if any.
        """
        state = self.state
        logged = (state.step + 1) % self.config.training.log_every == 0
        self.monitors.begin_step(logged=logged)
        self.watchdog.enter("reading data", state.step + 1)
        clock = self.throughput.clock
        with clock.phase("data", host=True):
            batches = [to_device(self.inputs.loader.next_batch(), self.device) for _ in range(self.accumulation)]
        compiles = self.config.training.compile and not self.compiled
        self.watchdog.enter("compiling and updating" if compiles else "updating", state.step + 1)
        started = time.monotonic()
        signals = {"stop": int(self.stop_requests.look() is not None), **self.checkpointer.signals()}
        key = (self.config.training.seed, state.step, self.process.rank)
        observed = logged and self.monitors.observes_routers
        terms, totals = update(self.engine, batches, self.pad_id, *key, signals=signals, clock=clock, observed=observed)
        state.step += 1
        state.tokens += totals.tokens
        self.monitors.count(totals.tokens, batches)
        if compiles:
            self.compiled = True
            logger.info(
                "step %d took %.0f s, with the compilation of the blocks", state.step, time.monotonic() - started
            )
        self.stopping = totals.signals["stop"] > 0
        self.checkpointer.advance(totals.signals)
        try:
            return terms, self.health.check(state.step, terms, batches[0], totals.divisors)
        except UnhealthyError:
            self.log(terms)  # so that the last row shows what was wrong
            raise

    def roll_back(self, due: RollBack) -> None:
        """Return to an earlier checkpoint, but not in the data: what was read since is skipped."""
        checkpoint = due.checkpoint
        self.health.record_roll_back(due)
        self.checkpointer.settle(self.state.step)
        load_checkpoint(self.engine, checkpoint)
        self.state.restore(checkpoint.state)
        self.checkpointer.roll_back(checkpoint)
        self.metrics.rolled_back()
        self.monitors.restart(checkpoint.state.routing)

    def log(self, terms: LossTerms) -> None:
        """Write this step's row."""
        row = {"step": self.state.step, "tokens": self.state.tokens, **self.monitors.row(terms)}
        self.metrics.write(row)
        self.progress.row(row)
        self.throughput.restart()

    def evaluate(self) -> bool:
        """Measure the held-out examples, the same ones every time; return whether the step is the best so far."""
        state = self.state
        self.watchdog.enter("evaluating", state.step)
        with self.examples.watching() as examples:
            values = self.evaluator.measure()
        values |= self.evaluator.measure_further()
        self.metrics.write({"split": "validation", "step": state.step, "tokens": state.tokens, **values})
        routing = self.monitors.routing_row()
        if routing:
            self.metrics.write({"split": "routing", "step": state.step, "tokens": state.tokens, **routing})
        for example in examples:
            self.metrics.write_example({"step": state.step, **example})
        self.progress.validation(state.step, values)
        self.health.check_validation(state.step, values)
        state.evaluated = Evaluation.of(state.step, values)
        is_best = self.checkpointer.is_due(state.step, state.evaluated.cross_entropy, state.evaluated.scores)
        self.throughput.restart()
        return is_best

    def save(self) -> None:
        """Begin a checkpoint, after waiting for the one before. Raises UnhealthyError: it would not be finite."""
        state = self.state
        with self.throughput.saving():
            self.checkpointer.settle(state.step)  # it may write a row, which belongs to what this checkpoint knows
        moment = Moment(
            step=state.step,
            tokens=state.tokens,
            data=self.inputs.loader.state_dict(),
            guard=self.health.guard.state_dict(),
            **state.evaluation_saved(),
            metrics_bytes=self.metrics.nbytes,
            code=code_version(),
            seconds=self._seconds(),
            routing=self.monitors.state_dict(),
        )
        try:
            with self.throughput.saving():
                self.checkpointer.save(self.engine, moment)
        except NotFiniteError as error:
            self.health.stop(state.step, str(error))
        self.throughput.restart()

    def _save_last(self) -> None:
        """Return when the present step is in a checkpoint. Raises SaveError if it cannot be written."""
        if not self.checkpointer.is_saved(self.state.step):
            self.save()
            if not self.checkpointer.is_saved(self.state.step):
                raise SaveError(f"the last checkpoint, of step {self.state.step}, could not be written: see above")

    def _agree_on_resume(self) -> Checkpoint | None:
        """The checkpoint that all ranks resume from, if any, with the data at its position.

        Raises:
            ConfigError: none is intact, or the run cannot resume from it.
        """
        chosen = self.inputs.resume_from
        if chosen is None:
            return None
        agreed = agree_on_checkpoint(self.config.run_dir, first=chosen.folder)
        if agreed != chosen:
            check_fits(agreed, self.config, self.process.world_size, self.inputs.zero_stage)
            self.inputs.loader.load_state_dict(agreed.state.data)
            self.inputs.loader.start()
        return agreed

    def _announce(self, unigram: float) -> None:
        if self.process.rank == 0:
            first = self.validation[0]
            text = start_table(
                self.config,
                self.model_config,
                step=self.state.step,
                ranks=self.process.world_size,
                zero_stage=self.inputs.zero_stage,
                tokens_of_sequence=first["input_ids"].shape[1] + first["labels"].shape[1],
                memory=self.monitors.efficiency.memory()[0],
                peak=self.monitors.efficiency.peak,
                unigram=unigram,
                trained=trained_numel(self.engine.module),
            )
            logger.info("%s", text)
        self.progress.begin(self.state.step)

    def _announce_stop(self) -> None:
        reason = self.stop_requests.reason or "a request to another rank"
        self.stop_requests.obeyed()
        self._close()
        logger.info("stopped after step %d by %s; --resume continues from there", self.state.step, reason)
        logger.info("continue  %s", self.folder.train_command(self.process.world_size, "--resume"))

    def _seconds(self) -> float:
        """Seconds of training over all sessions, without what a crash has undone."""
        return round(self.seconds_before + time.monotonic() - self.started, 3)

    def _finish(self, unigram: float) -> None:
        """Write the summary and say what was reached."""
        assert self.state.evaluated is not None
        summary = summarize(
            self.config,
            self.inputs,
            steps=self.state.step,
            tokens=self.state.tokens,
            **self.state.evaluated.summary(),
            best={name: entry._asdict() for name, entry in self.checkpointer.best.entries.items()},
            unigram_cross_entropy=unigram,
            mfu_peak=str(self.monitors.efficiency.peak),
            wall_seconds=self._seconds(),
        )
        if self.process.rank == 0:
            self.folder.write_summary(summary)
        self._close()
        logger.info("%s", end_table(self.folder, summary))

    def _close(self) -> None:
        self.inputs.loader.close()
        self.profiler.close()
        report_communication()
        self.monitors.close()
        self.progress.close()
