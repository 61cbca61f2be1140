"""When a run counts as unstable: the one definition, on the training cross-entropy of its logged steps.

- A *window* is 5 % of the run's steps, of at least 5 logged rows. The *level* of a run at a row is the lowest median of
  all windows so far: what the run had already reached.
- A run has **diverged** if a loss or gradient was ever not finite, or if the median of a window is more than 0.3 nats
  above the level: the loss was that high for more than half of the time, so that one good batch does not hide it.
- A **spike** is an unbroken succession of rows more than 0.5 nats above the level, in a run that has not diverged.

The paper says of its runs only that they diverged; margins and time are this project's. A spike between two logged
steps is not seen, and a run that never learns has not diverged.
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

DURATION = 0.05  # of the run's steps
MIN_WINDOW_ROWS = 5
MARGIN_NATS = 0.3
SPIKE_NATS = 0.5


@dataclass(frozen=True)
class Verdict:
    """What a run's curve says."""

    diverged_at: int | None  # the step from which the loss was too high, or at which something was not finite
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
    window = _window_rows(rows, steps)
    level, spikes, in_spike = math.inf, 0, False
    values: list[float] = []
    for number, row in enumerate(rows, start=1):
        if not _is_finite(row):
            return Verdict(int(row["step"]), "loss or gradient not finite", spikes)
        values.append(row["cross_entropy"])
        above = values[-1] > level + SPIKE_NATS
        spikes += above and not in_spike
        in_spike = above
        if number < window:
            continue
        median = statistics.median(values[-window:])
        if median > level + MARGIN_NATS:
            first = next(r for r in rows[number - window : number] if r["cross_entropy"] > level + MARGIN_NATS)
            reason = f"a window's median {median:.2f} is more than {MARGIN_NATS} nats above {level:.2f}"
            return Verdict(int(first["step"]), reason, spikes - in_spike)
        level = min(level, median)
    return Verdict(None, "", spikes)


def _is_finite(row: Mapping[str, Any]) -> bool:
    """Whether loss and gradient of a row are, and no update before it was left out."""
    finite = math.isfinite(row["cross_entropy"]) and math.isfinite(row["grad_norm"])
    return finite and not row["skipped_steps"]


def _window_rows(rows: list[Mapping[str, Any]], steps: int) -> int:
    interval = rows[1]["step"] - rows[0]["step"] if len(rows) > 1 else 1
    return max(MIN_WINDOW_ROWS, round(DURATION * steps / interval))
