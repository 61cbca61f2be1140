"""The logical streams that one process serves: those of a rank, or of one of its workers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.objectives.registry import make_objective
from data.objectives.text_to_text import TextToText
from data.sources.base import ShardSource
from data.streaming.corpus import TRAIN_MASK, Corpus
from data.streaming.mixture import MixtureStream
from data.streaming.stream import ExampleStream
from data.streaming.task_examples import TaskExamples
from data.streaming.task_stream import TaskOrder, TaskStream, task_shares
from data.tokenizer import Tokenizer


class ExampleBatch(NamedTuple):
    """Examples, and the states of their streams after them."""

    inputs: NDArray[np.int32]  # [examples, inputs_length], padded
    labels: NDArray[np.int32]  # [examples, targets_length], padded
    states: dict[int, dict[str, Any]]
    retries: int  # of the sources, since the previous batch


class StreamGroup:
    """Some logical streams of the training text. Picklable before the first ``take``.

    Args:
        config: the ``data`` section.
        tokenizer: the vocabulary.
        sources: shards of each of ``config.train_sources()``, or tasks.
        streams: numbers of the logical streams.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        sources: Sequence[ShardSource] | Sequence[TaskExamples],
        streams: Sequence[int],
    ) -> None:
        self._sources = sources
        make: Callable[[int], MixtureStream | TaskStream]
        if config.objective == "tasks":
            tasks = [source for source in sources if isinstance(source, TaskExamples)]
            make = _of_tasks(config, tokenizer, tasks)
        else:
            shards = [source for source in sources if not isinstance(source, TaskExamples)]
            make = _of_text(config, tokenizer, shards)
        self.streams = {stream: make(stream) for stream in streams}

    def take(self, order: Sequence[int]) -> ExampleBatch:
        """Return the next example of each stream in ``order``, which must not be empty.

        Raises:
            DataError: see ``ExampleStream.next_example``.
        """
        examples = [self.streams[stream].next_example() for stream in order]
        retries = sum(source.retries.counts.total() for source in self._sources)
        for source in self._sources:
            source.retries.counts.clear()
        return ExampleBatch(
            np.stack([example.inputs for example in examples]),
            np.stack([example.labels for example in examples]),
            {stream: self.streams[stream].state_dict() for stream in dict.fromkeys(order)},
            retries,
        )

    def state_dicts(self) -> dict[int, dict[str, Any]]:
        """Return the state of every stream of this group, by its number."""
        return {number: stream.state_dict() for number, stream in self.streams.items()}

    def load_state_dicts(self, states: dict[int, dict[str, Any]]) -> None:
        """Load the state of every stream of this group; ``states`` may hold further streams."""
        for number, stream in self.streams.items():
            stream.load_state_dict(states[number])

    def close(self) -> None:
        """Do nothing; the counterpart of ``WorkerPool.close``."""


def _of_text(
    config: DataConfig, tokenizer: Tokenizer, sources: Sequence[ShardSource]
) -> Callable[[int], MixtureStream]:
    objective = make_objective(config, tokenizer)
    weights = [source.weight for source in config.train_sources()]
    corpora = [Corpus(shards, config.num_streams, config.seed, number=i) for i, shards in enumerate(sources)]

    def make(stream: int) -> MixtureStream:
        source_streams = [
            ExampleStream(corpus, tokenizer, objective, stream, config, TRAIN_MASK, config.shuffle_buffer)
            for corpus in corpora
        ]
        return MixtureStream(stream, source_streams, weights)

    return make


def _of_tasks(config: DataConfig, tokenizer: Tokenizer, tasks: Sequence[TaskExamples]) -> Callable[[int], TaskStream]:
    order = TaskOrder(tasks, list(task_shares(config, tasks).values()), config.seed)
    encoder = TextToText(config, tokenizer)
    return lambda stream: TaskStream(stream, config.num_streams, order, encoder)
