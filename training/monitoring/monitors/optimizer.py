"""Learning rate, gradient norm and skipped steps."""

from typing import Any

from training.engine.shares import Reduced
from training.monitoring.monitors.base import PassiveMonitor


class OptimizerFigures(PassiveMonitor):
    """Learning rate, global gradient norm and skipped steps, which every rank knows.

    Args:
        engine: the DeepSpeed engine.
        peak: ``optimizer.learning_rate``.
    """

    def __init__(self, engine: Any, peak: float):
        self.engine, self.peak = engine, peak

    def columns(self, reduced: Reduced) -> dict[str, float]:
        """Return the figures of the last update."""
        norm = self.engine.get_global_grad_norm()
        return {
            "learning_rate": self._learning_rate(),
            "grad_norm": float("nan") if norm is None else float(norm),
            "skipped_steps": self.engine.skipped_steps,
        }

    def _learning_rate(self) -> float:
        schedule = self.engine.lr_scheduler  # it does not count skipped steps
        return float(schedule.lr_lambdas[0](max(0, schedule.last_epoch - 1)) * self.peak)
