"""The metrics of a run's tasks at each evaluation: its model answers, whatever the layout it is trained at."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
import torch.distributed as dist
from deepspeed.runtime.torch_autocast import autocast_if_enabled

from data.tokenizer import Tokenizer
from training.tasks.answers import Answerer, Decoding, gathered, likeliest
from training.tasks.questions import Asked, encode
from training.tasks.scores import columns


class TaskAnswers:
    """A ``Measure`` of ``training.evaluation``: metrics and score of each task, and the mean score.

    The answers are those of the routing that the run is evaluated with: its capacity and its random choices. Under ZeRO
    3 each module gathers its weights as it does in training.

    Args:
        asked: of each task, at least one.
        tokenizer: of the run.
        inputs_length: most tokens of the encoder.
        decoding: how answers are generated.
        by: whether tasks with choices are answered by generation or by likelihood.
        alive: called before each task with its name.
    """

    def __init__(
        self,
        asked: Sequence[Asked],
        tokenizer: Tokenizer,
        inputs_length: int,
        decoding: Decoding,
        by: Literal["generated", "likeliest"],
        alive: Callable[[str], None] = lambda name: None,
    ):
        self.tokenizer, self.decoding, self.by, self.alive = tokenizer, decoding, by, alive
        self.asked = list(asked)
        self.questions = [encode(one, tokenizer, inputs_length, sentinels=decoding.sentinels) for one in asked]

    def __call__(self, engine: Any) -> dict[str, float]:
        """Return the columns of a row of validation, the same on every rank; collective."""
        answerer = Answerer(engine.module, self.tokenizer, self.decoding, dist.get_rank(), dist.get_world_size())
        engine.eval()
        metrics: dict[str, dict[str, float]] = {}
        with ExitStack() as contexts:
            contexts.enter_context(autocast_if_enabled(engine))
            # Compiled blocks have fixed shapes, and each length of an answer is one more.
            contexts.enter_context(torch.compiler.set_stance("force_eager"))
            for asked, questions in zip(self.asked, self.questions, strict=True):
                self.alive(asked.task.name)
                if self.by == "likeliest" and asked.has_choices:
                    totals = gathered(answerer.log_probabilities(questions))
                    texts = likeliest(asked, totals) if answerer.rank == 0 else []
                else:
                    generated = gathered(answerer.generate(questions))
                    texts = [generated[number] for number in range(len(questions))] if answerer.rank == 0 else []
                if answerer.rank == 0:
                    metrics[asked.task.name] = asked.task.metrics(texts, asked.rows)
        engine.train()
        found: list[Any] = [columns([one.task for one in self.asked], metrics) if answerer.rank == 0 else None]
        dist.broadcast_object_list(found, src=0)
        values: dict[str, float] = found[0]
        return values
