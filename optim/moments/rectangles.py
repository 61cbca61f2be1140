"""A segment of stacked matrices as rectangles, which row and column sums can be taken of.

A segment starts and ends anywhere in a matrix: with the rest of a row, whole rows, whole matrices, whole rows and the
start of a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from optim.partition import Segment


@dataclass(frozen=True)
class Rectangle:
    """Consecutive elements of a partition that are whole rows, or a part of one row, of one unit of a parameter."""

    offset: int  # of the first element in the partition
    unit: int
    row: range
    column: range

    @property
    def numel(self) -> int:
        """Elements of the rectangle."""
        return len(self.row) * len(self.column)


def rectangles(segment: Segment, rows: int, columns: int, max_elements: int) -> Iterator[Rectangle]:
    """Cut a segment, of units of ``rows`` x ``columns``, into rectangles.

    Args:
        segment: of a parameter whose units are matrices.
        rows, columns: of one unit.
        max_elements: most elements of a rectangle; it has at least one row all the same.
    """
    size = rows * columns
    for unit, elements, _ in segment.unit_runs():
        for row, column in _within_unit(elements.start, elements.stop, columns, max_elements):
            position = unit * size + row.start * columns + column.start
            yield Rectangle(segment.offset + position - segment.start, unit, row, column)


def _within_unit(start: int, stop: int, columns: int, max_elements: int) -> Iterator[tuple[range, range]]:
    """Rows and columns of the rectangles that make up elements ``[start, stop)`` of one matrix."""
    first = min(-(-start // columns) * columns, stop)  # the first and the last element that begins or ends a row
    last = max(stop // columns * columns, first)
    for low, high in ((start, first), (first, last), (last, stop)):
        row, column = divmod(low, columns)
        if 0 < high - low < columns:
            yield range(row, row + 1), range(column, column + high - low)
        elif low < high:
            step = max(1, max_elements // columns)
            for some in range(row, high // columns, step):
                yield range(some, min(some + step, high // columns)), range(columns)
