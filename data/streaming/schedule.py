"""Which logical stream each example comes from, and which rank it belongs to."""

from typing import NamedTuple

from data.config import DataConfig


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


def check_streams(config: DataConfig, world_size: int) -> None:
    """Check that the streams can be divided among the ranks, and those of a rank among its workers.

    Raises:
        ValueError: they cannot; names ``data.num_streams`` or ``data.num_workers`` and a value that works.
    """
    if config.num_streams % world_size:
        raise ValueError(
            f"data.num_streams = {config.num_streams} is not a multiple of world_size = {world_size}: set "
            f"data.num_streams to a multiple of {world_size}, or use a number of ranks that divides it"
        )
    if config.num_workers > config.num_streams // world_size:
        raise ValueError(
            f"data.num_workers = {config.num_workers} is more than the {config.num_streams // world_size} streams of a "
            f"rank (data.num_streams / ranks): set data.num_workers to at most {config.num_streams // world_size}"
        )
