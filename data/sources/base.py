"""What every source of text is: shards of rows in a fixed order."""

from collections.abc import Iterator
from typing import Protocol

from data.sources.retry import Retries
from data.sources.rows import Row


class ShardSource(Protocol):
    """Shards of rows, in an order that never changes. Can be pickled while nothing is being read."""

    retries: Retries

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        ...

    @property
    def key(self) -> str:
        """`key = value` of the setting that chose this source, for error messages."""
        ...

    def describe(self, shard: int) -> str:
        """A shard's name, for error messages."""
        ...

    def rows(self, shard: int, start: int) -> Iterator[Row]:
        """Rows of a shard, from row `start` on; good or bad, each counts as one."""
        ...
