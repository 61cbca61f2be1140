"""Makes a row of each run that is trained and evaluated, from the files in its folder."""

from collections.abc import Mapping, Sequence
from typing import Any

from studies.design_space.evaluate import FACTOR, missing_factors, read_evaluations
from studies.design_space.trials import Trial
from studies.results import record
from studies.results.record import held_out_figures, last_validation, row_of
from studies.results.rows import Row
from studies.runner.runs import Run


class Recorder(record.Recorder[Trial]):
    """Evaluates each run at further capacity factors, then appends its row."""

    def program(self, run: Run, *, planned: bool = False) -> Sequence[str] | None:
        """Return how to evaluate the run at the capacity factors that it still lacks."""
        factors: Sequence[float] = self.trials[run.variant].factors
        if not planned:
            trained = run.folder.summary() is not None and run.folder.has_checkpoint()
            factors = missing_factors(run.dir, tuple(factors)) if trained else []
        if not factors:
            return None
        return ["-m", "studies.design_space.evaluate", str(run.dir), *(f"{factor:g}" for factor in factors)]

    def row(self, run: Run, trial: Trial) -> Row:
        """Return the row of a run that is over."""
        return make_row(run, trial, self.base, self.surroundings)


def make_row(run: Run, trial: Trial, base: str, surroundings: Mapping[str, Any]) -> Row:
    """Return the row of a run that is over: stable, or diverged, with the reason."""
    validation, evaluated = last_validation(run), read_evaluations(run.dir)
    own = {FACTOR: float(run.config.architecture().eval_capacity_factor), **held_out_figures(validation)}
    others = [{FACTOR: e[FACTOR], **held_out_figures(e)} for e in evaluated["evaluations"]]
    results = {
        "evaluations": sorted([own, *others], key=lambda e: e[FACTOR]) if validation else [],
        "own_factor": own[FACTOR],
    }
    device = {"device": evaluated["device"] or surroundings.get("device")}
    return row_of(run, trial, base, results, {**surroundings, **device})
