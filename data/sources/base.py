"""The interface of a source of text."""

from collections.abc import Iterator
from typing import Protocol

from data.sources.retry import Retries
from data.sources.rows import Row


class ShardSource(Protocol):
    """Shards of rows in a fixed order. Picklable while no rows are being read."""

    retries: Retries

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        ...

    @property
    def key(self) -> str:
        """``key = value`` of the setting that selected this source, for error messages."""
        ...

    def describe(self, shard: int) -> str:
        """Return the name of a shard, for error messages."""
        ...

    def identify(self, shard: int) -> str:
        """Return what tells a shard from others wherever it lies: its name and, if it is to be had, its size."""
        ...

    def rows(self, shard: int, start: int) -> Iterator[Row]:
        """Yield the rows of a shard from row ``start``; bad rows count like good ones."""
        ...
