"""What a run measures on its held-out examples, the same ones every time."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from model.config import StMoeConfig
from training.engine.step import evaluate

Measure = Callable[[Any], dict[str, float]]


class Evaluator:
    """The objective's terms, the cross-entropy of each domain or task, and further figures.

    Args:
        engine: the DeepSpeed engine.
        config: the model's.
        batches: this rank's, on the engine's device.
        domains: names of the domains, or tasks, whose cross-entropy is reported.
        key: what randomness depends on: seed and rank.
        measures: of further figures, such as metrics of generated answers: called with the engine after each
            evaluation, on all ranks alike. Their names must be columns of ``training.monitoring.columns``.
    """

    def __init__(
        self,
        engine: Any,
        config: StMoeConfig,
        batches: Sequence[dict[str, Tensor]],
        domains: Sequence[str],
        key: tuple[int, int],
        measures: Sequence[Measure] = (),
    ):
        self.engine, self.config, self.batches, self.key = engine, config, list(batches), key
        self.domains, self.measures = list(domains), list(measures)

    def measure(self) -> dict[str, float]:
        """Return the columns of a row of validation; collective over all ranks."""
        terms = evaluate(self.engine, self.batches, int(self.config.pad_token_id or 0), *self.key)
        values = terms.reduce(self.config, self.domains)
        for measure in self.measures:
            values |= measure(self.engine)
        return values
