"""Equal rectangles of many matrices as one strided view, so that one operation works on all of them.

Layers repeat: their matrices of one shape lie at equal distances in a partition, and distances repeat again from one
group of layers to the next.

Shape suffixes: U = units (matrices) of one shape, S = a stack's dimensions before its rows, R = rows, C = columns.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

from torch import Tensor

from optim.moments.rectangles import Rectangle


@dataclass(frozen=True)
class Stack:
    """Whole rows, the same ones, of consecutive matrices of one shape that lie at regular distances in a partition."""

    offset: int  # of the first element in the partition
    unit: int  # the first matrix, of all of its shape
    row: range
    columns: int
    counts: tuple[int, ...] = (1,)  # matrices along each dimension of S, outermost first
    distances: tuple[int, ...] = (0,)  # elements of the partition from one to the next

    @property
    def numel(self) -> int:
        """Elements of the stack."""
        return prod(self.counts) * len(self.row) * self.columns

    def view(self, flat: Tensor) -> Tensor:
        """Return the stack's elements ``[S, R, C]`` of a contiguous ``flat`` with the partition's."""
        shape, strides = (*self.counts, len(self.row), self.columns), (*self.distances, self.columns, 1)
        return flat.as_strided(shape, strides, flat.storage_offset() + self.offset)

    def of_units(self, values_U: Tensor) -> Tensor:
        """Return what belongs to the stack's matrices of ``values_U``, ``[S, ...]``."""
        return values_U[self.unit : self.unit + prod(self.counts)].unflatten(0, self.counts)

    def of_rows(self, values_UR: Tensor) -> Tensor:
        """Return what belongs to the stack's rows of ``values_UR``, ``[S, R]``."""
        return self.of_units(values_UR[:, self.row.start : self.row.stop])


def make_stacks(rectangles: Iterable[Rectangle], max_elements: int) -> list[Stack]:
    """Return whole rows as few stacks, with at most ``max_elements`` each unless a rectangle has more."""
    stacks = [Stack(r.offset, r.unit, r.row, len(r.column)) for r in rectangles]
    while True:
        fewer = list(_merge(stacks, max_elements))
        if len(fewer) == len(stacks):
            return stacks
        stacks = fewer


def _merge(stacks: list[Stack], max_elements: int) -> Iterator[Stack]:
    """Merge consecutive stacks that are equal and at equal distances: one dimension of S more for each."""
    index = 0
    while index < len(stacks):
        first, count = stacks[index], 1
        distance = stacks[index + 1].offset - first.offset if index + 1 < len(stacks) else 0
        for before, after in pairwise(stacks[index:]):
            expected = replace(before, offset=before.offset + distance, unit=before.unit + prod(before.counts))
            if after != expected or (count + 1) * first.numel > max_elements:
                break
            count += 1
        if count > 1:
            alone = first.counts == (1,)
            counts, distances = ((), ()) if alone else (first.counts, first.distances)
            first = replace(first, counts=(count, *counts), distances=(distance, *distances))
        yield first
        index += count
