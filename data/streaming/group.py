"""The logical streams that one process serves, and the order in which a rank's batches ask them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.objectives.registry import make_objective
from data.sources.base import ShardSource
from data.streaming.corpus import TRAIN_MASK, Corpus
from data.streaming.mixture import MixtureStream
from data.streaming.stream import ExampleStream
from data.tokenizer import Tokenizer


class Schedule(NamedTuple):
    """Which streams the batches of one rank take their examples from.

    Global example n is taken from stream n % num_streams and belongs to rank n % world_size.
    """

    rank: int
    world_size: int
    batch_size: int
    num_streams: int

    def streams(self, next_example: int) -> list[int]:
        """Streams of this rank's part of the global batch that starts with global example `next_example`."""
        first = next_example + (self.rank - next_example) % self.world_size
        return [n % self.num_streams for n in range(first, self.after(next_example), self.world_size)]

    def after(self, next_example: int) -> int:
        """First global example of the batch after that of `next_example`."""
        return next_example + self.world_size * self.batch_size


class Taken(NamedTuple):
    """Examples, and the states of their streams after them."""

    inputs: NDArray[np.int32]  # [examples, inputs_length], padded
    labels: NDArray[np.int32]  # [examples, targets_length], padded
    states: dict[int, dict[str, Any]]
    retries: int  # of the sources, since the last time


class StreamGroup:
    """Some logical streams of the training text. Can be pickled before the first `take`.

    Args:
        config: the `data` section.
        tokenizer: the vocabulary.
        sources: the shards of each of `config.train_sources()`.
        streams: numbers of the logical streams.
    """

    def __init__(
        self, config: DataConfig, tokenizer: Tokenizer, sources: Sequence[ShardSource], streams: Sequence[int]
    ) -> None:
        self._sources = sources
        objective = make_objective(config, tokenizer)
        weights = [source.weight for source in config.train_sources()]
        corpora = [Corpus(shards, config.num_streams, config.seed, number=i) for i, shards in enumerate(sources)]

        def make(stream: int) -> MixtureStream:
            parts = [
                ExampleStream(corpus, tokenizer, objective, stream, config, TRAIN_MASK, config.shuffle_buffer)
                for corpus in corpora
            ]
            return MixtureStream(stream, parts, weights)

        self.streams = {stream: make(stream) for stream in streams}

    def take(self, order: Sequence[int]) -> Taken:
        """The next example of each stream of `order`, which is not empty."""
        examples = [self.streams[stream].next_example() for stream in order]
        retries = sum(source.retries.counts.total() for source in self._sources)
        for source in self._sources:
            source.retries.counts.clear()
        return Taken(
            np.stack([example.inputs for example in examples]),
            np.stack([example.labels for example in examples]),
            {stream: self.streams[stream].state_dict() for stream in dict.fromkeys(order)},
            retries,
        )

    def state_dicts(self) -> dict[int, dict[str, Any]]:
        """State of every stream."""
        return {stream: part.state_dict() for stream, part in self.streams.items()}

    def load_state_dicts(self, states: dict[int, dict[str, Any]]) -> None:
        """Goes on from the states of all streams of this group."""
        for stream, part in self.streams.items():
            part.load_state_dict(states[stream])

    def close(self) -> None:
        """Nothing to release; as `WorkerPool.close`."""
