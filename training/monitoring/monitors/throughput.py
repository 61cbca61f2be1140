"""Rates, seconds and bytes of steps."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from training.engine.clock import Clock
from training.engine.shares import Reduced
from training.monitoring.monitors.base import PassiveMonitor

PHASES = ("data", "forward", "backward", "all_to_all", "optimizer")


class Throughput(PassiveMonitor):
    """Rates, seconds and bytes per step, on this rank, since the last row or interruption.

    Args:
        model: whose all-to-alls are counted.
        device: of the model.
    """

    def __init__(self, model: Any, device: str):
        self.clock = Clock(model, device)
        self.step_seconds = 0.0  # of the last row
        self._saving, self._steps_since_row = 0.0, 0
        self.restart()

    def restart(self) -> None:
        """Start a new window, so that time spent outside of steps does not count."""
        self.started, self.used = time.monotonic(), time.process_time()
        self.steps = self.tokens = 0
        self.clock.restart()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Count the time of the context as standing still for a checkpoint."""
        began = time.monotonic()
        yield
        self._saving += time.monotonic() - began

    def count(self, tokens: int) -> None:
        """Count a step on ``tokens`` real tokens."""
        self.steps += 1
        self._steps_since_row += 1
        self.tokens += tokens

    def columns(self, reduced: Reduced) -> dict[str, float]:
        """Return means over the steps of the window, which ends."""
        seconds = time.monotonic() - self.started
        of_phases, all_to_all_bytes = self.clock.take()
        self.step_seconds = seconds / self.steps
        row = {
            "tokens_per_second": self.tokens / seconds,
            "step_seconds": self.step_seconds,
            "processor_seconds": (time.process_time() - self.used) / self.steps,
            **{f"{phase}_seconds": of_phases.get(phase, 0.0) / self.steps for phase in PHASES},
            "checkpoint_seconds": self._saving / self._steps_since_row,
            "all_to_all_bytes": all_to_all_bytes / self.steps,
        }
        self._saving, self._steps_since_row = 0.0, 0
        return row
