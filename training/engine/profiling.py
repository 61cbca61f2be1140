"""Records some steps with torch.profiler, into files that TensorBoard's profiler plugin and Perfetto open."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from deepspeed.comm import comm
from deepspeed.utils import comms_logging
from torch.profiler import ProfilerActivity, profile, record_function

from common.logs import ALL_RANKS, get_logger
from training.config.monitor import ProfileConfig

ENDING = ".pt.trace.json.gz"  # by which the plugin knows traces

logger = get_logger(__name__)


class StepProfiler:
    """Records the steps of ``training.profile`` on the ranks that it names; elsewhere it does nothing.

    A run that begins, ends or returns to a checkpoint within these steps records those that it makes: the folder of a
    file tells its steps, ``profile/steps_100-110/rank_0.pt.trace.json.gz``. What cannot be written ends no run.

    Args:
        config: which steps and ranks.
        folder: of all traces of the run.
        rank: of this process.
        device: of this process.
    """

    def __init__(self, config: ProfileConfig, folder: Path, rank: int, device: str):
        self.folder, self.rank = folder, rank
        self.steps = config.steps if rank in config.ranks else None
        self.activities = [ProfilerActivity.CPU]
        if torch.device(device).type == "cuda":
            self.activities.append(ProfilerActivity.CUDA)
        elif self.steps is not None:  # Kineto reports each start and stop, above all levels; on CUDA it also warns
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        self._running: profile | None = None
        self._first = self._last = 0

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Record what happens within the context if ``step``, which is being made, is one to record."""
        if step != self._last + 1:
            self.close()  # the run has returned to a checkpoint
        if self.steps is None or not self.steps[0] <= step <= self.steps[1]:
            yield
            return
        if self._running is None:
            self._running = profile(activities=self.activities)
            self._running.start()
            self._first = step
        with record_function(f"ProfilerStep#{step}"):  # the name from which the plugin takes the times of steps
            yield
        self._last = step
        if step == self.steps[1]:
            self.close()

    def close(self) -> None:
        """Write what has been recorded."""
        if self._running is None:
            return
        recorded, self._running = self._running, None
        recorded.stop()
        folder = self.folder / f"steps_{self._first}-{self._last}"
        file, partial = folder / f"rank_{self.rank}{ENDING}", folder / f".rank_{self.rank}.gz"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            recorded.export_chrome_trace(str(partial))
            partial.replace(file)
        except OSError as error:
            logger.warning(f"the profile {file} could not be written: {error.strerror}", extra=ALL_RANKS)
            return
        logger.info(f"profile of steps {self._first} to {self._last}: {file}", extra=ALL_RANKS)


def prepare_comms_logger() -> None:
    """Let DeepSpeed's option ``comms_logger`` take note of every collective.

    Its own computation of bandwidths ends the process, with code 0, for those that it does not know, such as
    ``all_gather_object``.
    """
    known = comms_logging.calc_bw_log

    def bandwidths(operation: str, size: int, duration: float) -> tuple[float, float]:
        try:
            with redirect_stdout(io.StringIO()):
                return known(operation, size, duration)
        except SystemExit:
            return 0.0, 0.0

    comms_logging.calc_bw_log = bandwidths


def report_communication() -> None:
    """Print DeepSpeed's table of collectives, if its option ``comms_logger`` is on; collective."""
    if comm.comms_logger.enabled:
        comm.log_summary()
