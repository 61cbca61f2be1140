"""A segment of a matrix as rectangles, which row and column sums can be taken of.

A segment starts and ends anywhere in a matrix. It is cut into the rest of a row, whole rows and the start of a row, on
which everything is a few vector operations.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor

from optim.partition import Segment


@dataclass(frozen=True)
class Rectangle:
    """Consecutive elements of a partition that are a rectangle ``[units, rows, columns]`` of a parameter."""

    offset: int  # of the first element in the partition
    unit: slice
    row: slice
    column: slice

    @property
    def shape(self) -> tuple[int, int, int]:
        """Units, rows, columns."""
        u, r, c = self.unit, self.row, self.column
        return u.stop - u.start, r.stop - r.start, c.stop - c.start

    def view(self, flat: Tensor) -> Tensor:
        """Return the rectangle's elements, ``[units, rows, columns]``, as a view of ``flat``."""
        return flat.narrow(0, self.offset, prod(self.shape)).view(self.shape)


def rectangles(segment: Segment, rows: int, columns: int, max_elements: int) -> list[Rectangle]:
    """Cut a segment, of units of ``rows`` x ``columns``, into rectangles.

    Args:
        segment: of a parameter whose units are matrices.
        rows, columns: of one unit.
        max_elements: most elements of a rectangle; it has at least one row all the same.
    """
    size, found = rows * columns, []
    for start, stop in _cut(segment.start, segment.stop, size):
        units = range(start // size, -(-stop // size))
        if stop - start == len(units) * size <= max_elements * len(units):
            for some in _split(units, max_elements // size):
                found.append((some.start * size, some, range(rows), range(columns)))
            continue
        for unit in units:
            low, high = max(start, unit * size), min(stop, (unit + 1) * size)
            for some, part in _within_unit(low - unit * size, high - unit * size, columns, max_elements):
                position = unit * size + some.start * columns + part.start
                found.append((position, range(unit, unit + 1), some, part))
    return [
        Rectangle(segment.offset + position - segment.start, *(slice(axis.start, axis.stop) for axis in axes))
        for position, *axes in found
    ]


def _cut(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """``[start, stop)`` at multiples of ``size``: up to the first, whole ones together, from the last; none empty."""
    first = min(-(-start // size) * size, stop)
    last = max(stop // size * size, first)
    for low, high in ((start, first), (first, last), (last, stop)):
        if low < high:
            yield low, high


def _within_unit(start: int, stop: int, columns: int, max_elements: int) -> Iterator[tuple[range, range]]:
    """Rows and columns of the rectangles that make up elements ``[start, stop)`` of one matrix."""
    for low, high in _cut(start, stop, columns):
        first, column = divmod(low, columns)
        if high - low < columns:
            yield range(first, first + 1), range(column, column + high - low)
        else:
            for rows in _split(range(first, high // columns), max(1, max_elements // columns)):
                yield rows, range(columns)


def _split(numbers: range, size: int) -> Iterator[range]:
    """Consecutive ranges of at most ``size``."""
    for start in range(numbers.start, numbers.stop, size):
        yield range(start, min(start + size, numbers.stop))
