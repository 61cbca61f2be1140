"""The matrices of one shape in a partition, and where they lie in the vectors of all units, rows and columns.

Shape suffixes: U = units of the partition or, where said, of one shape; R = rows, C = columns of all units one after
another or, behind U, of one.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from optim.moments.rectangles import Rectangle, rectangles
from optim.moments.stacks import make_stacks
from optim.partition import Segment


class Sizes(NamedTuple):
    """Lengths of, or positions in, the vectors of all units, rows and columns."""

    units: int = 0
    rows: int = 0
    columns: int = 0


class Matrices:
    """The units of one shape, and where they lie in the vectors of units, rows and columns.

    Args:
        shape: rows and columns of one unit.
        segments: all of the partition whose units have this shape, the empty ones too.
        start: units, rows and columns before these.
        max_elements: most elements of a stack.
    """

    def __init__(self, shape: Sequence[int], segments: Sequence[Segment], start: Sizes, max_elements: int):
        self.rows, self.columns = shape
        self.start, units = start, 0
        self.first_units: dict[Segment, int] = {}
        whole: list[Rectangle] = []
        self.parts: list[Rectangle] = []  # of rows; like the others with their units counted over all segments
        for segment in segments:
            self.first_units[segment] = units
            for found in rectangles(segment, self.rows, self.columns, max_elements):
                numbered = Rectangle(found.offset, units + found.unit, found.row, found.column)
                (whole if len(found.column) == self.columns else self.parts).append(numbered)
            units += segment.spec.units
        self.count = units
        self.stacks = make_stacks(whole, max_elements)

    @property
    def stop(self) -> Sizes:
        """Units, rows and columns up to the last of these."""
        units, rows, columns = self.start
        return Sizes(units + self.count, rows + self.count * self.rows, columns + self.count * self.columns)

    def of_units(self, values_U: Tensor) -> Tensor:
        """Return these units' part of a tensor whose last dimension runs over all units."""
        return values_U[..., self.start.units : self.stop.units]

    def of_rows(self, values_R: Tensor) -> Tensor:
        """Return these units' part ``[..., U, R]`` of a tensor whose last dimension runs over all rows."""
        return values_R[..., self.start.rows : self.stop.rows].unflatten(-1, (self.count, self.rows))

    def of_columns(self, values_C: Tensor) -> Tensor:
        """Return these units' part ``[U, C]`` of a vector with all columns."""
        return values_C[self.start.columns : self.stop.columns].view(self.count, self.columns)
