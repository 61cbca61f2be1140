"""Passive observers: they add columns to a run's rows and never change the run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from data.streaming.loader import PretrainingLoader
from parallel.layer import take_traffic
from training.engine.batches import sum_over_ranks


class Monitor(Protocol):
    """A passive observer. ``metrics`` is collective: all ranks hold the same monitors in the same order."""

    def begin_step(self, step: int) -> None:
        """Note the start of the step after ``step`` updates."""

    def metrics(self) -> dict[str, float]:
        """Return this monitor's columns of the row that is due."""

    def close(self) -> None:
        """Release what it holds."""


class PassiveMonitor:
    """Empty ``begin_step`` and ``close``, for monitors that need neither."""

    def begin_step(self, step: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Throughput(PassiveMonitor):
    """Rates, seconds and bytes per step, on this rank, since the last row or interruption.

    Args:
        model: whose all-to-alls are counted.
    """

    def __init__(self, model: Any):
        self.model = model
        self.restart()

    def restart(self) -> None:
        """Start a new window, so that time spent outside of steps does not count."""
        self.started = time.monotonic()
        self.steps = self.tokens = 0
        self.waited = 0.0
        take_traffic(self.model)  # of an evaluation

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time of the context as waiting for data."""
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    def count(self, tokens: int) -> None:
        """Count a step on ``tokens`` real tokens."""
        self.steps += 1
        self.tokens += tokens

    def metrics(self) -> dict[str, float]:
        """Return means over the steps of the window."""
        seconds = time.monotonic() - self.started
        all_to_all_bytes, all_to_all_seconds = take_traffic(self.model)
        return {
            "tokens_per_second": self.tokens / seconds,
            "step_seconds": seconds / self.steps,
            "data_seconds": self.waited / self.steps,
            "all_to_all_bytes": all_to_all_bytes / self.steps,
            "all_to_all_seconds": all_to_all_seconds / self.steps,
        }


class DataCounts(PassiveMonitor):
    """Counts of the data that the loaders of all ranks have read."""

    def __init__(self, loader: PretrainingLoader, device: str):
        self.loader, self.device = loader, device

    def metrics(self) -> dict[str, float]:
        """Return the totals over ranks; one small all-reduce."""
        return dict(sum_over_ranks(self.loader.metrics(), self.device))
