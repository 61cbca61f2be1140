"""A source of text with a fault in its code; a worker process must be able to import it."""

from collections.abc import Iterator

from data.sources.retry import Retries


class BrokenSource:
    num_shards, key = 8, "broken"

    def __init__(self) -> None:
        self.retries = Retries(0, 0.0)

    def describe(self, shard: int) -> str:
        return str(shard)

    def identify(self, shard: int) -> str:
        return str(shard)

    def rows(self, shard: int, start: int) -> Iterator[str]:
        yield ["text"][shard + 1000]
