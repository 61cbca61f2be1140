"""Which logical stream each example comes from, and which rank it belongs to."""

from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from data.config import DataConfig
from data.sources.base import ShardSource


class Schedule(NamedTuple):
    """Assignment of examples to streams and ranks.

    Global example n is taken from stream n % num_streams and belongs to rank n % world_size. Step k of a run holds the
    examples from k * world_size * batch_size on, so its set of examples does not depend on the number of ranks and
    workers.
    """

    rank: int
    world_size: int
    batch_size: int
    num_streams: int

    def own_streams(self) -> range:
        """Return the streams that this rank reads."""
        return range(self.rank, self.num_streams, self.world_size)

    def streams(self, next_example: int) -> list[int]:
        """Return the stream of each example of this rank's batch; the global batch starts at ``next_example``."""
        first = next_example + (self.rank - next_example) % self.world_size
        return [n % self.num_streams for n in range(first, self.after(next_example), self.world_size)]

    def after(self, next_example: int) -> int:
        """Return the first global example of the global batch after the one that starts at ``next_example``."""
        return next_example + self.world_size * self.batch_size


def check_ranks(rank: int, world_size: int, batch_size: int) -> None:
    """Check that rank and batch size are valid.

    Raises:
        ValueError: they are not.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank = {rank} is not in [0, world_size = {world_size})")
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size} must be at least 1")


def check_shards(config: DataConfig, world_size: int, sources: Sequence[ShardSource]) -> None:
    """Check that shards can be dealt to the streams.

    Raises:
        ValueError: they cannot; names ``data.num_streams`` and a value that works, or how many shards are needed.
    """
    smallest = min(sources, key=lambda source: source.num_shards)
    shards, streams = smallest.num_shards, config.num_streams
    have = f"{smallest.key} has {shards} shard{'s' * (shards != 1)}"
    if shards < world_size:
        raise ValueError(
            f"{have}, too few for {world_size} ranks: write the text to at least {world_size} shards (--shards of "
            f"`python -m data.prepare`), or start fewer ranks"
        )
    fits = shards // world_size * world_size
    if streams % world_size:
        _refuse_streams(streams, world_size, fits)
    if streams > shards:
        raise ValueError(
            f"data.num_streams = {streams}, but {have}: set data.num_streams={fits}, or write the text to more shards "
            "(--shards of `python -m data.prepare`)"
        )


def check_streams(config: DataConfig, world_size: int) -> None:
    """Check that streams can be dealt to the ranks, and those of a rank to its workers.

    Raises:
        ValueError: they cannot; names ``data.num_streams`` or ``data.num_workers`` and a value that works.
    """
    streams = config.num_streams
    if streams % world_size:
        _refuse_streams(streams, world_size, streams + world_size)
    per_rank = streams // world_size
    if config.num_workers > per_rank:
        raise ValueError(
            f"data.num_workers = {config.num_workers} is more than the {per_rank} streams of a rank (data.num_streams "
            f"/ ranks): set data.num_workers to at most {per_rank}"
        )


def _refuse_streams(streams: int, world_size: int, most: int) -> NoReturn:
    nearest = min(max(1, round(streams / world_size)) * world_size, most)
    raise ValueError(
        f"data.num_streams = {streams} is not a multiple of the {world_size} ranks: set data.num_streams={nearest}"
    )
