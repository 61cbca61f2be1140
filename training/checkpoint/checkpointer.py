"""Checkpoint policy of a run: when to wait for a save, what to report, what to do after a failed one."""

from collections.abc import Mapping
from typing import Any

from common.exit_codes import SAVE_FAILED, RunError
from common.logs import get_logger
from training.checkpoint.capture import Moment
from training.checkpoint.saver import Saved, Saver
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
        self.saver.start(engine, moment)
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

    def roll_back(self, checkpoint: Checkpoint) -> None:
        """Make ``checkpoint`` the latest after a rollback to it; later ones belong to an abandoned future."""
        self.saved_step = checkpoint.state.step
        if self.metrics.enabled:
            self.saver.folder.set_latest(checkpoint.folder)

    def _report(self, saved: Saved | None) -> None:
        if saved is None:
            return
        row = {"split": "checkpoint", "step": saved.step, "stall_seconds": saved.stall_seconds,
               "save_seconds": saved.seconds, "rank_bytes": saved.nbytes}  # fmt: skip
        if saved.error is None:
            self.metrics.write(row)
            logger.info(
                "step %d  checkpoint %s, %.1f s, of which training waited %.2f s%s",
                saved.step,
                saved.folder,
                saved.seconds,
                saved.stall_seconds,
                "".join(f"; removed {name}" for name in saved.pruned),
            )
            return
        self.metrics.write(row | {"error": saved.error})
        self.saved_step = None
        text = f"checkpoint {saved.folder} could not be written: {saved.error}"
        if self.config.training.on_save_error == "stop":
            raise SaveError(f"{text}; the one before it is intact")
        logger.warning("%s; continuing (training.on_save_error)", text)
