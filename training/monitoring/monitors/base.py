"""Passive observers: they add columns to a run's rows and never change the run."""

from typing import Protocol

from data.streaming.loader import PretrainingLoader
from training.engine.loss_terms import LossTerms
from training.engine.shares import Reduced, Share, share


class Monitor(Protocol):
    """A passive observer. All ranks hold the same monitors in the same order, with shares of the same lengths."""

    def begin_step(self, *, logged: bool) -> None:
        """Note the start of a step, and whether a row is written after it."""

    def share(self, terms: LossTerms) -> Share:
        """Return what this rank adds to the row of the step with these ``terms``."""

    def columns(self, reduced: Reduced) -> dict[str, float]:
        """Return this monitor's columns of the row, from the shares of all ranks."""

    def close(self) -> None:
        """Release what it holds."""


class PassiveMonitor:
    """A monitor that notes nothing and shares nothing."""

    def begin_step(self, *, logged: bool) -> None:
        """Do nothing."""

    def share(self, terms: LossTerms) -> Share:
        """Return an empty share."""
        return share()

    def close(self) -> None:
        """Do nothing."""


class DataCounts(PassiveMonitor):
    """Counts of the data that the loaders of all ranks have read."""

    def __init__(self, loader: PretrainingLoader):
        self.loader = loader

    def share(self, terms: LossTerms) -> Share:
        """Return this rank's counts."""
        self.counts = self.loader.metrics()
        return share(list(self.counts.values()))

    def columns(self, reduced: Reduced) -> dict[str, float]:
        """Return the totals over ranks."""
        return {name: int(total) for name, total in zip(self.counts, reduced.sums, strict=True)}
