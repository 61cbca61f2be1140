"""Makes a row of each run that is over, from the files in its folder."""

import statistics
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from studies.results.machine import circumstances
from studies.results.rows import RUN, Row, append_row, identity, read_rows
from studies.runner.follow_up import FollowUp
from studies.runner.runs import Run
from training.monitoring.columns import (
    CROSS_ENTROPY,
    DROPPED_FIRST_CHOICES,
    DROPPED_FRACTION,
    DROPPED_SECOND_CHOICES,
    PEAK_MEMORY_BYTES,
    PROCESSOR_SECONDS,
    STEP,
    STEP_SECONDS,
    VALIDATION,
    split_of,
    training_rows,
)
from training.planning.cost import cost_of

LAST = 0.2  # of a run's steps, over which dropped tokens are averaged: the routers have settled
FIRST = 0.1  # of a run's steps, whose times are not counted


class Identified(Protocol):
    """A configuration that stands for one or more variants of a study."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the variants, in their order; the first is that of the runs."""

    @property
    def overrides(self) -> dict[str, Any]:
        """Of the base configuration."""

    @property
    def key(self) -> str:
        """Identifies the settings on which a run's numbers depend, on any machine."""


Trial = TypeVar("Trial", bound=Identified)


class Recorder(FollowUp, Generic[Trial]):
    """Appends the row of each run, whose results a study's own class makes.

    Args:
        path: of the file of rows.
        trials: name of the run's variant → its trial.
        base: path of the base configuration, for readers of the rows.
        surroundings: what all runs have in common: ``ranks``, ``jobs``, ``threads``, ``device``.
    """

    def __init__(self, path: Path, trials: Mapping[str, Trial], base: str, surroundings: Mapping[str, Any]):
        self.path, self.trials, self.base, self.surroundings = path, trials, base, surroundings

    def is_done(self, run: Run) -> bool:
        """Return whether the run has its row, made here or elsewhere."""
        return (RUN, self.trials[run.variant].key, run.seed) in set(map(identity, read_rows(self.path)))

    def finish(self, run: Run) -> None:
        """Append the run's row."""
        append_row(self.path, self.row(run, self.trials[run.variant]))

    @abstractmethod
    def row(self, run: Run, trial: Trial) -> Row:
        """Return the row of a run that is over."""


def row_of(run: Run, trial: Identified, base: str, results: Mapping[str, Any], surroundings: Mapping[str, Any]) -> Row:
    """Return the row of a run that is over: stable, or diverged, with the reason.

    Args:
        run: the run.
        trial: its configuration.
        base: path of the base configuration.
        results: the study's own columns.
        surroundings: see ``Recorder``.
    """
    result, training, summary = run.result(), training_rows(run.folder.rows()), run.folder.summary() or {}
    steps = run.config.training.steps
    settled = [row for row in training if row[STEP] > (1 - LAST) * steps]
    timed = [row for row in training if row[STEP] > FIRST * steps]
    return {
        "kind": RUN,
        "variants": list(trial.names),
        "seed": run.seed,
        "key": trial.key,
        "config": base,
        "steps": steps,
        "settings": trial.overrides,
        "status": result.status,
        "reason": result.verdict.reason,
        "diverged_at": result.verdict.diverged_at,
        **results,
        "dropped_train": _mean(settled, DROPPED_FRACTION),
        "dropped_first_choices": _mean_over_layers(settled, DROPPED_FIRST_CHOICES),
        "dropped_second_choices": _mean_over_layers(settled, DROPPED_SECOND_CHOICES),
        "step_seconds": _median(timed, STEP_SECONDS),
        "processor_seconds": _median(timed, PROCESSOR_SECONDS),
        "tokens_per_step": summary["tokens"] / summary["steps"] if summary else None,
        "peak_memory_bytes": training[-1].get(PEAK_MEMORY_BYTES) if training else None,
        **cost_of(run.config).as_row(),
        **surroundings,
        **circumstances(),
        **{key: summary[key] for key in ("git_commit", "versions") if key in summary},
    }


def last_validation(run: Run) -> dict[str, Any]:
    """Return the last row of validation of a run that is complete; empty for another."""
    if run.folder.summary() is None:
        return {}
    return next((row for row in reversed(run.folder.rows()) if split_of(row) == VALIDATION), {})


def held_out_figures(validation: Mapping[str, Any]) -> dict[str, Any]:
    """Return cross-entropy, of all text and of each domain where the run tells them apart, and dropped tokens."""
    return {
        key: value
        for key, value in validation.items()
        if key in (CROSS_ENTROPY, DROPPED_FRACTION) or key.startswith(f"{CROSS_ENTROPY}/")
    }


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if key in row]
    return statistics.fmean(values) if values else None


def _mean_over_layers(rows: Sequence[Mapping[str, Any]], column: str) -> float | None:
    prefix = column.partition("<")[0]
    values = [value for row in rows for key, value in row.items() if key.startswith(prefix)]
    return statistics.fmean(values) if values else None


def _median(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if key in row]
    return statistics.median(values) if values else None
