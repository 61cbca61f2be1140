"""The definition of an unstable run, on the training cross-entropy of its logged steps.

- A *window* is 5 % of the run's steps, and at least 5 logged rows. The *level* of a run at a row is the lowest median
  of all windows up to that row.
- A run has **diverged** if a loss or gradient was not finite, or if the median of a window exceeds the level by more
  than 0.3 nats: the loss was too high for more than half of the window, so that one good batch does not hide it.
- A **spike** is a sequence of consecutive rows more than 0.5 nats above the level, in a run that has not diverged.

The paper states only that runs diverged; margins and window are choices of this project. A spike between two logged
steps goes unnoticed, and a run that never learns has not diverged.
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

DURATION = 0.05  # window, as a fraction of the run's steps
MIN_WINDOW_ROWS = 5
MARGIN_NATS = 0.3
SPIKE_NATS = 0.5


@dataclass(frozen=True)
class Verdict:
    """Judgment of a run by its loss curve."""

    diverged_at: int | None  # first step at which the loss was too high or a value not finite; None: stable
    reason: str  # empty for a stable run
    spikes: int

    @property
    def stable(self) -> bool:
        """Whether the run never diverged."""
        return self.diverged_at is None


def judge(rows: Iterable[Mapping[str, Any]], steps: int) -> Verdict:
    """Apply the definition above.

    Args:
        rows: training rows of ``metrics.jsonl``: ``step``, ``cross_entropy`` (nats per token), ``grad_norm``,
            ``skipped_steps`` (optimizer steps skipped because of a gradient that was not finite).
        steps: steps of the complete run.
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
    """Return whether loss and gradient of a row are finite and no optimizer step was skipped for the gradient."""
    finite = math.isfinite(row["cross_entropy"]) and math.isfinite(row["grad_norm"])
    return finite and not row["skipped_steps"]


def _window_rows(rows: list[Mapping[str, Any]], steps: int) -> int:
    interval = rows[1]["step"] - rows[0]["step"] if len(rows) > 1 else 1
    return max(MIN_WINDOW_ROWS, round(DURATION * steps / interval))
