"""A source of text that fails once and is then read; a worker process must be able to import it."""

from collections.abc import Iterator

from data.sources.retry import Retries
from data.sources.rows import Row


class FlakySource:
    num_shards, key = 8, "flaky"

    def __init__(self) -> None:
        self.retries = Retries(1, 0.0)
        self.fails = True

    def describe(self, shard: int) -> str:
        return f"flaky shard {shard}"

    def identify(self, shard: int) -> str:
        return str(shard)

    def rows(self, shard: int, start: int) -> Iterator[Row]:
        return self.retries.rows(self._read, start, self.describe(shard))

    def _read(self, row: int) -> Iterator[Row]:
        if self.fails:
            self.fails = False
            raise OSError("connection reset")
        yield from ["a text of several words, read after the failure"] * 50
