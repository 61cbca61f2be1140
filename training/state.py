"""Progress of a run: steps, tokens, the last evaluation."""

from dataclasses import dataclass
from typing import NamedTuple

from training.checkpoint.store.state import SavedState


class Evaluation(NamedTuple):
    """The outcome of an evaluation."""

    step: int
    cross_entropy: float  # nats per target token
    domains: dict[str, float] = {}  # the same of each domain that is reported


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
            self.evaluated = Evaluation(int(saved.evaluated[0]), saved.evaluated[1], saved.evaluated_domains)

    @property
    def is_evaluated(self) -> bool:
        """Whether the last evaluation is of the present step."""
        return self.evaluated is not None and self.evaluated.step == self.step
