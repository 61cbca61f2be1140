"""The fixed order in which logical streams read the shards of a source.

The shards are dealt to ``num_streams`` logical streams. What a stream reads depends on (seed, stream, position) only:
a run can stop anywhere and resume exactly, also with other numbers of ranks and workers.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data.sources.base import ShardSource
from data.sources.rows import Row

# First word of every seed, one for each use of randomness, so that no two share a seed (numpy pads seeds with zeros).
SHARD_ORDER, TRAIN_MASK, VALIDATION_MASK, DOCUMENT_ORDER, TASK_ORDER, VALIDATION_SAMPLE, ANSWERED_SAMPLE = range(1, 8)


class Position(NamedTuple):
    """Where a stream reads next: ``shard`` indexes the stream's shard order in this epoch, ``row`` the shard's rows."""

    epoch: int
    shard: int
    row: int


class Corpus:
    """Shards dealt to streams: shard i belongs to stream i % num_streams.

    Args:
        source: the shards.
        num_streams: number of logical streams.
        seed: seed of all randomness in the corpus.
        shuffled: shuffle the shards of a stream in every epoch; otherwise keep the source's order.
        number: number of the source in a mixture; it is part of all seeds.

    Raises:
        ValueError: fewer shards than streams.
    """

    def __init__(
        self, source: ShardSource, num_streams: int, seed: int, *, shuffled: bool = True, number: int = 0
    ) -> None:
        if source.num_shards < num_streams:
            raise ValueError(
                f"data.num_streams = {num_streams} is more than the {source.num_shards} shards of {source.key}"
            )
        self.source = source
        self.num_streams = num_streams
        self._seed = seed
        self._shuffled = shuffled
        self._number = number

    def rng(self, use: int, *position: int) -> np.random.Generator:
        """Return the random generator for one use of randomness at one position in the corpus."""
        # Number 0 is not appended, so that the first source of a mixture has the same order as on its own.
        number = (self._number,) if self._number else ()
        return np.random.default_rng((use, self._seed, *position, *number))

    def shard_order(self, stream: int, epoch: int) -> list[int]:
        """Return the shards of a stream in the order of an epoch."""
        shards = np.arange(stream, self.source.num_shards, self.num_streams)
        if self._shuffled:
            self.rng(SHARD_ORDER, stream, epoch).shuffle(shards)
        return [int(shard) for shard in shards]

    def rows(self, stream: int, position: Position) -> Iterator[tuple[Row, Position]]:
        """Yield the rows of a stream from a position to the end of its epoch, each with the position after it."""
        epoch, first_shard, first_row = position
        for index, shard in enumerate(self.shard_order(stream, epoch)):
            if index < first_shard:
                continue
            start = first_row if index == first_shard else 0
            for row, content in enumerate(self.source.rows(shard, start), start + 1):
                yield content, Position(epoch, index, row)
