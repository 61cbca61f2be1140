"""When a run counts as unstable: the one definition, on the training cross-entropy of its logged steps.

- The *level* of a run at a row is the lowest running median (of 1 % of the rows, at least 5) of all rows before it:
  what the run had already reached.
- An *excursion* is an unbroken succession of rows that lie more than 0.5 nats above the level. The level stands still
  meanwhile.
- A run has **diverged** if a loss or gradient was ever not finite, or if an excursion lasted for 5 % of the steps of
  the whole run.
- A shorter excursion is a **spike**, whether the run recovered from it or ended in it.

The paper says of its runs only that they diverged; margin and time are this project's. A spike between two logged
steps is not seen.
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MARGIN_NATS = 0.5
DURATION = 0.05  # of the run's steps
SMOOTHING = 0.01  # of the run's rows
MIN_SMOOTHING_ROWS = 5


@dataclass(frozen=True)
class Verdict:
    """What a run's curve says."""

    diverged_at: int | None  # the step at which the excursion that lasted began, or of the first number not finite
    reason: str  # empty for a stable run
    spikes: int

    @property
    def stable(self) -> bool:
        """Whether the run never diverged."""
        return self.diverged_at is None


def judge(rows: Iterable[Mapping[str, Any]], steps: int) -> Verdict:
    """Apply the definition above.

    Args:
        rows: of training, as ``metrics.jsonl`` has them: ``step``, ``cross_entropy``, ``grad_norm``, ``skipped_steps``
            (updates left out because their gradient was not finite).
        steps: of the whole run.
    """
    rows = list(rows)
    window = max(MIN_SMOOTHING_ROWS, round(SMOOTHING * len(rows)))
    level = math.inf
    normal: list[float] = []
    excursion: list[int] = []
    spikes = 0
    for row in rows:
        step, value = int(row["step"]), float(row["cross_entropy"])
        if _not_finite(row):
            return Verdict(step, "loss or gradient not finite", spikes)
        if value > level + MARGIN_NATS:
            excursion.append(step)
            if excursion[-1] - excursion[0] >= DURATION * steps:
                reason = f"more than {MARGIN_NATS} nats above {level:.2f} for {DURATION:.0%} of the steps"
                return Verdict(excursion[0], reason, spikes)
            continue
        spikes += bool(excursion)
        excursion = []
        normal.append(value)
        if len(normal) >= window:
            level = min(level, statistics.median(normal[-window:]))
    return Verdict(None, "", spikes + bool(excursion))


def _not_finite(row: Mapping[str, Any]) -> bool:
    finite = math.isfinite(row["cross_entropy"]) and math.isfinite(row.get("grad_norm", 0.0))
    return not finite or row.get("skipped_steps", 0) > 0
