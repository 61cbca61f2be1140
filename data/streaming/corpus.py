"""Shards of rows, and the fixed order in which logical streams read them.

A corpus is a list of shards dealt to `num_streams` logical streams. What a stream reads follows from (seed, stream,
position) alone, so a run stops anywhere and goes on exactly, at another number of ranks or workers too.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data.sources.base import ShardSource
from data.sources.rows import Row

# First word of every seed, so that no two uses of randomness share one (numpy pads short seeds with zeros).
SHARD_ORDER, TRAIN_MASK, VALIDATION_MASK, DOCUMENT_ORDER = 1, 2, 3, 4


class Position(NamedTuple):
    """Where a stream reads next: `shard` counts in the epoch's order of this stream, `row` within that shard."""

    epoch: int
    shard: int
    row: int


class Corpus:
    """Shards dealt to streams: shard i belongs to stream i % num_streams.

    Args:
        source: the shards.
        num_streams: logical streams.
        seed: of all randomness in the corpus.
        shuffled: whether each epoch of a stream has its shards in an order of its own, or all in the source's.
        number: of the source in a mixture; sources of one mixture have orders of their own.

    Raises:
        ValueError: fewer shards than streams.
    """

    def __init__(
        self, source: ShardSource, num_streams: int, seed: int, *, shuffled: bool = True, number: int = 0
    ) -> None:
        if source.num_shards < num_streams:
            raise ValueError(
                f"data.num_streams = {num_streams} is more than the {source.num_shards} shards of {source.key}: "
                f"set data.num_streams to at most {source.num_shards}, or make more shards (`python -m data.prepare "
                "--shards`)"
            )
        self.source = source
        self.num_streams = num_streams
        self._seed = seed
        self._shuffled = shuffled
        self._number = number

    def rng(self, use: int, *place: int) -> np.random.Generator:
        """The generator of one use of randomness at one place of the corpus."""
        # The number is appended where it is not 0 only: the first source has the same order in a mixture as alone.
        words = (use, self._seed, *place, self._number) if self._number else (use, self._seed, *place)
        return np.random.default_rng(words)

    def shard_order(self, stream: int, epoch: int) -> list[int]:
        """Shards of a stream in the order in which an epoch reads them."""
        shards = np.arange(stream, self.source.num_shards, self.num_streams)
        if self._shuffled:
            self.rng(SHARD_ORDER, stream, epoch).shuffle(shards)
        return [int(shard) for shard in shards]

    def rows(self, stream: int, position: Position) -> Iterator[tuple[Row, Position]]:
        """Rows of a stream from a position to the end of its epoch, each with the position after it."""
        epoch, first_shard, first_row = position
        for index, shard in enumerate(self.shard_order(stream, epoch)):
            if index < first_shard:
                continue
            start = first_row if index == first_shard else 0
            for row, content in enumerate(self.source.rows(shard, start), start + 1):
                yield content, Position(epoch, index, row)
