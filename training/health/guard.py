"""Decides what to do about non-finite gradients and loss spikes.

The guard sees one loss per step; the trainer acts. Its state is in the checkpoint, so a resumed run decides alike.
"""

import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from common.text import counted
from training.config.guard import GuardConfig

NORMAL = 1.4826  # standard deviations of a normal distribution per median absolute deviation
LEAST_DEVIATION = 1e-3  # of the median, so that the noise of a flat loss is no spike


@dataclass(frozen=True)
class Decision:
    """A decision after a step."""

    kind: Literal["skipped", "spike", "roll_back", "stop"]
    reason: str
    before: int | None = None  # roll_back: only checkpoints of an earlier step will do


class Guard:
    """Decides the same on all ranks, given the same losses.

    Args:
        config: the guard section.
    """

    def __init__(self, config: GuardConfig):
        self.config = config
        self.losses: deque[float] = deque(maxlen=config.spike_window)
        self.non_finite = 0  # consecutive steps
        self.spikes = 0  # consecutive steps
        self.rollbacks = 0

    def observe(self, step: int, *, applied: bool, loss: float | None) -> Decision | None:
        """Return the decision after a step, if there is one to make.

        Args:
            step: its number, from 1.
            applied: whether the optimizer step was made.
            loss: of the global batch; None if ``spike_threshold`` is 0.
        """
        if not applied:
            return self._non_finite(step)
        self.non_finite = 0
        if loss is None or not self.config.spike_threshold:
            return None
        score = self.score(loss)
        if score <= self.config.spike_threshold:
            self.losses.append(loss)
            self.spikes = 0
            return None
        self.spikes += 1
        reason = f"loss {loss:.4f} of step {step} is {score:.1f} robust standard deviations above the last ones"
        if self.spikes < self.config.spike_steps:
            return Decision("spike", reason)
        reason += f", spike {self.spikes} in a row"
        if self.rollbacks >= self.config.max_rollbacks:
            return Decision("stop", f"{reason}, after guard.max_rollbacks = {counted(self.rollbacks, 'rollback')}")
        first = step - self.spikes + 1
        return Decision("roll_back", reason, before=first - self.config.spike_margin + 1)

    def score(self, loss: float) -> float:
        """Return the robust z-score of a loss; infinite for a non-finite loss, otherwise 0 until the window is full."""
        if not math.isfinite(loss):
            return math.inf
        if len(self.losses) < self.config.spike_window:
            return 0.0
        middle = median(self.losses)
        deviation = NORMAL * median(abs(past - middle) for past in self.losses)
        return (loss - middle) / max(deviation, LEAST_DEVIATION * abs(middle), 1e-12)

    def rolled_back(self) -> None:
        """Count a rollback; the window stays, because it holds no spike."""
        self.rollbacks += 1
        self.spikes = 0

    def _non_finite(self, step: int) -> Decision:
        self.non_finite += 1
        reason = f"the gradient of step {step} is not finite, {self.non_finite} in a row"
        if self.config.max_non_finite_steps and self.non_finite >= self.config.max_non_finite_steps:
            return Decision("stop", f"{reason}, guard.max_non_finite_steps = {self.config.max_non_finite_steps}")
        return Decision("skipped", reason)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        return {
            "losses": list(self.losses),
            "non_finite": self.non_finite,
            "spikes": self.spikes,
            "rollbacks": self.rollbacks,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``, also under another configuration."""
        self.losses = deque(state["losses"], maxlen=self.config.spike_window)
        self.non_finite, self.spikes, self.rollbacks = state["non_finite"], state["spikes"], state["rollbacks"]
