"""Adafactor's second moment of one parameter, kept and applied on a segment of it.

A step passes over the segment three times, with a sum over ranks after the first two: the factors need the means of
whole rows and columns, clipping needs the root mean square (RMS) of whole updates.

    ``measure`` → sum over ranks → ``square_update`` → sum over ranks → ``apply``

Shape suffixes: U = units (experts, or 1), R = rows, C = columns.
"""

import torch
from torch import Tensor

from optim.partition import Segment
from optim.rectangles import rectangles

# Elements that a pass works on at a time. CPU: small enough to stay in a core's cache; elsewhere: bounds the scratch.
CPU_BLOCK, DEVICE_BLOCK = 1 << 17, 1 << 25


class FactoredMoment:
    """Running means of the squared gradient over each row and each column (Shazeer & Stern 2018, algorithm 4).

    Args:
        segment: of a parameter whose units are matrices.
        state: where the means are kept, ``size(segment)`` zeros; the same on all ranks that share the parameter.
    """

    def __init__(self, segment: Segment, state: Tensor):
        self.segment = segment
        self.rows, self.columns = segment.spec.unit_shape
        self.row_UR, self.column_UC = self._views(state)
        block_size = CPU_BLOCK if state.device.type == "cpu" else DEVICE_BLOCK
        self.rectangles = rectangles(segment, self.rows, self.columns, block_size)

    @staticmethod
    def size(segment: Segment) -> int:
        """Return how many numbers are kept: rows and columns of every unit."""
        return segment.spec.units * sum(segment.spec.unit_shape)

    def _views(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        units = self.segment.spec.units
        row, column = flat.split((units * self.rows, units * self.columns))
        return row.view(units, self.rows), column.view(units, self.columns)

    def measure(self, weights: Tensor, grad: Tensor, weight_squares_U: Tensor, means: Tensor) -> None:
        """Add the segment's share to the sums over whole units.

        Args:
            weights, grad: the partition's, flat.
            weight_squares_U: the weights' sum of squares is added here.
            means: zeros; mean squares of the gradient's rows and columns are written here, laid out as the state.
        """
        row_UR, column_UC = self._views(means)
        for rectangle in self.rectangles:
            weight_squares_U[rectangle.unit] += _row_norms(rectangle.view(weights)).square().sum(-1)
            square_URC = rectangle.view(grad).square()
            row_UR[rectangle.unit, rectangle.row] += square_URC.sum(-1)
            column_UC[rectangle.unit, rectangle.column] += square_URC.sum(-2)
        row_UR /= self.columns
        column_UC /= self.rows

    def square_update(self, grad: Tensor, squares_U: Tensor) -> None:
        """Add the segment's share of the sum of squares of each unit's update, before clipping."""
        # The root of a row's factor fits float32 where the factor itself, of a row without gradient, may not.
        self.row_factor_UR = (self.row_UR / self.row_UR.mean(-1, keepdim=True)).rsqrt()
        self.column_factor_UC = self.column_UC.rsqrt()
        for rectangle in self.rectangles:
            update_URC = rectangle.view(grad) * self.column_factor_UC[rectangle.unit, None, rectangle.column]
            norm_UR = _row_norms(update_URC) * self.row_factor_UR[rectangle.unit, rectangle.row]
            squares_U[rectangle.unit] += norm_UR.square().sum(-1)

    def apply(self, target: Tensor, grad: Tensor, step_size_U: Tensor) -> None:
        """Subtract ``step_size_U`` times the update from the segment of ``target``, flat."""
        row_UR = self.row_factor_UR * step_size_U[:, None]
        for rectangle in self.rectangles:
            scaled_URC = rectangle.view(grad) * row_UR[rectangle.unit, rectangle.row, None]
            column_U1C = self.column_factor_UC[rectangle.unit, None, rectangle.column]
            rectangle.view(target).addcmul_(scaled_URC, column_U1C, value=-1.0)


class FullMoment:
    """Running mean of every element's squared gradient, of the segment alone: for vectors and small matrices."""

    def __init__(self, segment: Segment, like: Tensor):
        self.segment = segment
        self.runs = list(segment.unit_runs())
        self.moment = like.new_zeros(segment.numel)

    def measure(self, weights: Tensor, grad: Tensor, weight_squares_U: Tensor, decay: float, epsilon: float) -> None:
        """Update the running mean, which needs nothing from other ranks, and add up the weights' squares."""
        self._add_squares(self.segment.view(weights), weight_squares_U)
        self.moment.mul_(decay).add_(self.segment.view(grad).square().add_(epsilon), alpha=1 - decay)

    def square_update(self, grad: Tensor, squares_U: Tensor) -> None:
        """As ``FactoredMoment.square_update``."""
        self.update = self.segment.view(grad) * self.moment.rsqrt()
        self._add_squares(self.update, squares_U)

    def apply(self, target: Tensor, _grad: Tensor, step_size_U: Tensor) -> None:
        """As ``FactoredMoment.apply``."""
        for unit, _, span in self.runs:
            self.segment.view(target)[span].addcmul_(self.update[span], step_size_U[unit], value=-1.0)
        del self.update

    def _add_squares(self, values: Tensor, squares_U: Tensor) -> None:
        for unit, _, span in self.runs:
            squares_U[unit] += torch.linalg.vector_norm(values[span]).square()


def _row_norms(x_URC: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x_URC, dim=-1)
