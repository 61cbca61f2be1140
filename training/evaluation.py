"""What a run measures on its held-out examples, the same ones every time."""

from collections.abc import Callable, Sequence
from typing import Any

import deepspeed.comm as dist
from torch import Tensor

from data.objectives.registry import targets_length
from model.config import StMoeConfig
from training.config.run import RunConfig
from training.engine.step import evaluate
from training.inputs import Inputs
from training.run.watchdog import Watchdog
from training.state import TrainState
from training.tasks.answers import Decoding
from training.tasks.measure import TaskAnswers

Measure = Callable[[Any], dict[str, float]]


class Evaluator:
    """The objective's terms, the cross-entropy of each domain or task, and further figures.

    Args:
        engine: the DeepSpeed engine.
        config: the model's.
        batches: this rank's, on the engine's device.
        domains: names of the domains, or tasks, whose cross-entropy is reported.
        key: what randomness depends on: seed and rank.
        measures: of further figures, such as the metrics of answers: called with the engine after each evaluation, on
            all ranks alike. Their names must be columns of ``training.monitoring.columns``.
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
        """Return the columns of a row of validation that are terms of the objective; collective over all ranks."""
        terms = evaluate(self.engine, self.batches, int(self.config.pad_token_id or 0), *self.key)
        return terms.reduce(self.config, self.domains)

    def measure_further(self) -> dict[str, float]:
        """Return those of the further figures; collective over all ranks."""
        return {name: value for measure in self.measures for name, value in measure(self.engine).items()}


def make_evaluator(
    engine: Any,
    config: RunConfig,
    batches: Sequence[dict[str, Tensor]],
    inputs: Inputs,
    watchdog: Watchdog,
    state: TrainState,
) -> Evaluator:
    """Return what measures a run on its held-out examples.

    Args:
        engine: the DeepSpeed engine.
        config: of the run.
        batches: this rank's held-out batches, on the engine's device.
        inputs: of the run.
        watchdog: told of phases.
        state: whose step they are of.
    """
    measures: list[Measure] = []
    if inputs.asked:
        data, tokenizer = config.data, inputs.tokenizer
        measures.append(
            TaskAnswers(
                inputs.asked,
                tokenizer,
                data.inputs_length,
                Decoding(targets_length(data, tokenizer), sentinels=data.sentinels),
                config.training.eval_answers_by,
                lambda task: watchdog.enter(f"answering {task}", state.step),
            )
        )
    key = (config.training.seed, dist.get_rank())
    return Evaluator(engine, config.st_moe_config(), batches, inputs.domains, key, measures)
