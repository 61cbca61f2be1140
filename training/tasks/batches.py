"""Batches of questions of similar length, shared by the ranks so that all of them make the same calls.

Experts on other ranks wait for every call of this rank. So the batches of one turn have the same number of rows and the
same length on all ranks; a rank with fewer questions fills its batch with a row that nobody reads.
"""

from collections.abc import Sequence
from typing import NamedTuple

BATCH_SIZE = 32  # questions on each rank, unless the user says otherwise


class Turn(NamedTuple):
    """One batch on every rank.

    Attributes:
        own: numbers of the questions of this rank, at most ``rows``.
        everyone: numbers of the questions of all ranks.
        rows: of the batch, on every rank.
    """

    own: list[int]
    everyone: list[int]
    rows: int


def turns(lengths: Sequence[int], batch_size: int, rank: int, world_size: int) -> list[Turn]:
    """Share questions, the longest first: a batch that does not fit in memory fails at once.

    Args:
        lengths: tokens of each question.
        batch_size: most questions of a batch on one rank.
        rank: this rank.
        world_size: number of ranks.
    """
    order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    found = []
    for start in range(0, len(order), batch_size * world_size):
        everyone = order[start : start + batch_size * world_size]
        found.append(Turn(everyone[rank::world_size], everyone, -(-len(everyone) // world_size)))
    return found


def padded(sequences: Sequence[Sequence[int]], rows: int, length: int, filler: int, pad: int) -> list[list[int]]:
    """Return ``rows`` sequences of ``length``.

    Args:
        sequences: at most ``rows``, each of at most ``length``.
        rows: number of sequences.
        length: of each.
        filler: what a row without a sequence begins with; the rest of it is padding.
        pad: the padding.
    """
    given = [*map(list, sequences), *([filler] for _ in range(rows - len(sequences)))]
    return [[*sequence, *[pad] * (length - len(sequence))] for sequence in given]
