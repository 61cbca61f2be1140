"""Checkpoint policy of a run: when to wait for a save, what to report, what to do after a failed one."""

import math
from collections.abc import Mapping
from typing import Any

import deepspeed.comm as dist

from common.exit_codes import SAVE_FAILED, RunError
from common.logs import get_logger
from training.checkpoint.capture import Moment
from training.checkpoint.saver import Saved, Saver
from training.checkpoint.store.best import Best, read_best, standing_best, values_of, write_best
from training.checkpoint.store.state import Checkpoint
from training.config.run import RunConfig
from training.monitoring.writer import MetricsWriter
from training.run.watchdog import Watchdog

logger = get_logger(__name__)


class SaveError(RunError):
    """A checkpoint could not be written."""

    code = SAVE_FAILED


class Checkpointer:
    """Writes a run's checkpoints, one at a time. All methods but ``signals`` are collective over all ranks.

    Args:
        config: of the run.
        device: of this rank.
        metrics: takes the rows of checkpoints.
        watchdog: told of phases.
        step: of the checkpoint that the run resumes from; 0 for a new run, which needs none of step 0.
    """

    def __init__(self, config: RunConfig, device: str, metrics: MetricsWriter, watchdog: Watchdog, step: int):
        self.config, self.metrics, self.watchdog = config, metrics, watchdog
        self.saver = Saver(config, device)
        self.saved_step: int | None = step  # of the newest checkpoint that is written or being written
        self.best = Best()
        self._restore_best(step)
        for name in self.saver.abandoned:
            logger.info("removed %s, which an interrupted save left", name)

    def signals(self) -> dict[str, int]:
        """See ``Saver.signals``."""
        return self.saver.signals()

    def advance(self, totals: Mapping[str, int]) -> None:
        """Advance the save in progress if all ranks are ready. Raises SaveError, see ``settle``."""
        self._report(self.saver.advance(totals))

    def save(self, engine: Any, moment: Moment) -> None:
        """Start a save; call ``settle`` before. Raises SaveError, see there, and NotFiniteError."""
        self.watchdog.enter("copying a checkpoint", moment.step)
        self.saver.start(engine, moment, self.best.adding(moment.step, self._values(moment)))
        self.saved_step = moment.step
        if not self.config.training.save_in_background:
            self.settle(moment.step)

    def settle(self, step: int) -> None:
        """Wait for the save in progress. Raises SaveError if it failed and ``on_save_error`` is ``stop``."""
        self._report(self.saver.wait(lambda: self.watchdog.enter("waiting for a checkpoint", step)))

    def is_saved(self, step: int) -> bool:
        """Wait for the save in progress, and return whether the newest checkpoint is of ``step``."""
        self.settle(step)
        return self.saved_step == step

    def is_due(self, step: int, cross_entropy: float, scores: Mapping[str, float]) -> bool:
        """Return whether the evaluation of this step is the best so far, and asks for a checkpoint.

        Waits for the save in progress where the answer depends on it.

        Args:
            step: updates made.
            cross_entropy: of the evaluation.
            scores: of its tasks.
        """
        values = values_of(self.config.training.keep_best, cross_entropy, scores)
        if step == 0 or not self.best.improved(step, values):  # there is no checkpoint of step 0
            return False
        if not self.is_saved(step):
            return bool(self.best.improved(step, values))
        # The run was stopped after this step, before its evaluation.
        self.best = self.best.adding(step, values)
        if self.metrics.enabled:
            write_best(self.config.run_dir, self.best)
        return False

    def roll_back(self, checkpoint: Checkpoint) -> None:
        """Make ``checkpoint`` the latest after a rollback to it; later ones belong to an abandoned future."""
        self.saved_step = checkpoint.state.step
        if self.metrics.enabled:
            self.saver.folder.set_latest(checkpoint.folder)
        self._restore_best(checkpoint.state.step)

    def _restore_best(self, step: int) -> None:
        """Find the best of the checkpoints that stand, on rank 0 for all."""
        found: list[Any] = [None]
        if self.metrics.enabled:
            best = standing_best(self.config.run_dir, self.config.training.keep_best, step)
            if best != read_best(self.config.run_dir):
                write_best(self.config.run_dir, best)
            found = [dict(best.entries)]
        dist.broadcast_object_list(found, src=0)
        self.best = Best(found[0])

    def _values(self, moment: Moment) -> dict[str, float]:
        """Return the columns by which a checkpoint of this moment is compared with others; none without evaluation."""
        evaluated = moment.evaluated
        if evaluated is None or int(evaluated[0]) != moment.step:
            return {}
        scores = {name: math.nan if score is None else score for name, score in moment.evaluated_scores.items()}
        return values_of(self.config.training.keep_best, evaluated[1], scores)

    def _report(self, saved: Saved | None) -> None:
        if saved is None:
            return
        row = {"split": "checkpoint", "step": saved.step, "stall_seconds": saved.stall_seconds,
               "save_seconds": saved.seconds, "rank_bytes": saved.nbytes}  # fmt: skip
        if saved.error is None:
            of_step = {name: entry.value for name, entry in saved.best.entries.items() if entry.step == saved.step}
            self.best = saved.best
            self.metrics.write(row)
            logger.info(
                "step %d  checkpoint %s, %.1f s, of which training waited %.2f s%s%s",
                saved.step,
                saved.folder,
                saved.seconds,
                saved.stall_seconds,
                "".join(f"; best {name} {value:.4g}" for name, value in of_step.items()),
                "".join(f"; removed {name}" for name in saved.pruned),
            )
            return
        self.metrics.write(row | {"error": saved.error})
        self.saved_step = None
        text = f"checkpoint {saved.folder} could not be written: {saved.error}"
        if self.config.training.on_save_error == "stop":
            raise SaveError(f"{text}; the one before it is intact")
        logger.warning("%s; continuing (training.on_save_error)", text)
