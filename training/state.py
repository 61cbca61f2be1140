"""Progress of a run: steps, tokens, the last evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from common.strict_json import finite_or_null
from training.checkpoint.store.state import SavedState
from training.monitoring.columns import CROSS_ENTROPY, SCORE


class Evaluation(NamedTuple):
    """The outcome of an evaluation."""

    step: int
    cross_entropy: float  # nats per target token
    domains: dict[str, float] = {}  # the same of each domain that is reported
    scores: dict[str, float] = {}  # of each task whose answers were scored, percent

    @classmethod
    def of(cls, step: int, row: Mapping[str, float]) -> "Evaluation":
        """Return what a row of validation says."""
        domains, scores = (
            {name.removeprefix(f"{column}/"): value for name, value in row.items() if name.startswith(f"{column}/")}
            for column in (CROSS_ENTROPY, SCORE)
        )
        return cls(step, row[CROSS_ENTROPY], domains, scores)

    def summary(self) -> dict[str, Any]:
        """Return the figures of ``summary.json``."""
        return {
            "validation_cross_entropy": self.cross_entropy,
            "validation_cross_entropy_of": self.domains,
            "validation_score_of": self.scores,
        }


@dataclass
class TrainState:
    """Progress that a checkpoint restores, besides tensors, data and guard."""

    step: int = 0  # optimizer steps made
    tokens: int = 0  # real tokens trained on, over all ranks
    evaluated: Evaluation | None = None

    def restore(self, saved: SavedState) -> None:
        """Restore the progress at which a checkpoint was written."""
        self.step, self.tokens = saved.step, saved.tokens
        self.evaluated = None
        if saved.evaluated is not None:
            self.evaluated = Evaluation(
                int(saved.evaluated[0]), saved.evaluated[1], saved.evaluated_domains, saved.scores
            )

    def evaluation_saved(self) -> dict[str, Any]:
        """Return the fields of a checkpoint that ``restore`` reads the last evaluation from."""
        last = self.evaluated
        if last is None:
            return {"evaluated": None}
        step_and_nats = [last.step, last.cross_entropy]
        scores = finite_or_null(last.scores)
        return {"evaluated": step_and_nats, "evaluated_domains": last.domains, "evaluated_scores": scores}

    @property
    def is_evaluated(self) -> bool:
        """Whether the last evaluation is of the present step."""
        return self.evaluated is not None and self.evaluated.step == self.step
