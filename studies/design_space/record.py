"""Makes a row of each run that is trained and evaluated, from the files in its folder."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.design_space.evaluate import FACTOR, missing_factors, read_evaluations
from studies.design_space.machine import circumstances
from studies.design_space.rows import RUN, Row, append_row, identity, read_rows
from studies.design_space.trials import Trial
from studies.runner.follow_up import FollowUp
from studies.runner.runs import Run
from training.cost import cost_of
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

LAST = 0.2  # of a run's steps, over which dropped tokens are averaged: the routers have settled
FIRST = 0.1  # of a run's steps, whose times are not counted


class Recorder(FollowUp):
    """Evaluates each run at further capacity factors, then appends its row.

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

    def program(self, run: Run, *, planned: bool = False) -> Sequence[str] | None:
        """Return how to evaluate the run at the capacity factors that it still lacks."""
        factors: Sequence[float] = self.trials[run.variant].factors
        if not planned:
            trained = run.folder.summary() is not None and run.folder.has_checkpoint()
            factors = missing_factors(run.dir, tuple(factors)) if trained else []
        if not factors:
            return None
        return ["-m", "studies.design_space.evaluate", str(run.dir), *(f"{factor:g}" for factor in factors)]

    def finish(self, run: Run) -> None:
        """Append the run's row."""
        append_row(self.path, make_row(run, self.trials[run.variant], self.base, self.surroundings))


def make_row(run: Run, trial: Trial, base: str, surroundings: Mapping[str, Any]) -> Row:
    """Return the row of a run that is over: stable, or diverged, with the reason."""
    result, rows = run.result(), run.folder.rows()
    training, summary = training_rows(rows), run.folder.summary() or {}
    steps, cost = run.config.training.steps, cost_of(run.config)
    validation: Mapping[str, Any] = (
        next((r for r in reversed(rows) if split_of(r) == VALIDATION), {}) if summary else {}
    )
    own = {FACTOR: float(run.config.architecture().eval_capacity_factor), **_figures(validation)}
    evaluated = read_evaluations(run.dir)
    others = [{FACTOR: e[FACTOR], **_figures(e)} for e in evaluated["evaluations"]]
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
        "evaluations": sorted([own, *others], key=lambda e: e[FACTOR]) if validation else [],
        "own_factor": own[FACTOR],
        "dropped_train": _mean(settled, DROPPED_FRACTION),
        "dropped_first_choices": _mean_over_layers(settled, DROPPED_FIRST_CHOICES),
        "dropped_second_choices": _mean_over_layers(settled, DROPPED_SECOND_CHOICES),
        "step_seconds": _median(timed, STEP_SECONDS),
        "processor_seconds": _median(timed, PROCESSOR_SECONDS),
        "tokens_per_step": summary["tokens"] / summary["steps"] if summary else None,
        "peak_memory_bytes": training[-1].get(PEAK_MEMORY_BYTES) if training else None,
        **cost.as_row(),
        **surroundings,
        "device": evaluated["device"] or surroundings.get("device"),
        **circumstances(),
        **{key: summary[key] for key in ("git_commit", "versions") if key in summary},
    }


def _figures(validation: Mapping[str, Any]) -> dict[str, Any]:
    """Cross-entropy, of all text and of each domain where the run tells them apart, and dropped tokens."""
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
