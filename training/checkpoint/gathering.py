"""What all ranks know, gathered on one of them: on each of them it would grow with the square of the ranks."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def gather_on_rank_0(own: T) -> list[T] | None:
    """Return what every rank gives, on rank 0; None elsewhere. Collective over all ranks.

    Args:
        own: of this rank; it is pickled. All ranks send as many bytes as the largest of ranks 1, 2, … needs.
    """
    gathered: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(None if dist.get_rank() == 0 else own, gathered, dst=0)
    if gathered is not None:
        gathered[0] = own
    return gathered


def joined_on_all(own: Any, join: Callable[[list[Any]], T]) -> T:
    """Return on every rank what rank 0 makes of what all give; collective.

    Args:
        own: of this rank; it is pickled.
        join: of the list over ranks makes what all ranks get; called on rank 0.
    """
    gathered = gather_on_rank_0(own)
    joined: list[Any] = [None if gathered is None else join(gathered)]
    dist.broadcast_object_list(joined, src=0)
    result: T = joined[0]
    return result
