"""What Adafactor remembers of one parameter's squared gradients, and how that scales an update, on a slice of it.

A step passes over the slice three times, with a sum over ranks after the first two: the factors need the means of whole
rows and columns, clipping needs the root mean square (RMS) of whole updates.

    ``measure`` → sum over ranks → ``square_update`` → sum over ranks → ``apply``

Shape suffixes: U = units (experts, or 1), R = rows, C = columns.
"""

import torch
from torch import Tensor

from optim.slices import Slice

# Elements that a pass works on at a time: on a CPU what stays in a core's cache, elsewhere what bounds the scratch.
CPU_BLOCK, DEVICE_BLOCK = 1 << 17, 1 << 25


class FactoredMoment:
    """Running means of the squared gradient over each row and each column (Shazeer & Stern 2018, algorithm 4).

    Args:
        part: a slice of a parameter whose units are matrices.
        state: where the means are kept, ``size(part)`` zeros; the same on all ranks that share the parameter.
    """

    def __init__(self, part: Slice, state: Tensor):
        self.part = part
        self.rows, self.columns = part.spec.unit_shape
        self.row_UR, self.column_UC = self._views(state)
        block_size = CPU_BLOCK if state.device.type == "cpu" else DEVICE_BLOCK
        self.blocks = part.blocks(self.rows, self.columns, block_size)

    @staticmethod
    def size(part: Slice) -> int:
        """Numbers that are kept: rows and columns of every unit."""
        return part.spec.units * sum(part.spec.unit_shape)

    def _views(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        units = self.part.spec.units
        row, column = flat.split((units * self.rows, units * self.columns))
        return row.view(units, self.rows), column.view(units, self.columns)

    def measure(self, weights: Tensor, grad: Tensor, weight_squares_U: Tensor, means: Tensor) -> None:
        """The slice's part of the sums over whole units.

        Args:
            weights, grad: the shard's, flat.
            weight_squares_U: the weights' sum of squares is added here.
            means: zeros; mean squares of the gradient's rows and columns are written here, laid out as the state.
        """
        row_UR, column_UC = self._views(means)
        for block in self.blocks:
            weight_squares_U[block.unit] += _row_norms(block.view(weights)).square().sum(-1)
            square_URC = block.view(grad).square()
            row_UR[block.unit, block.row] += square_URC.sum(-1)
            column_UC[block.unit, block.column] += square_URC.sum(-2)
        row_UR /= self.columns
        column_UC /= self.rows

    def square_update(self, grad: Tensor, squares_U: Tensor) -> None:
        """Add the slice's part of the sum of squares of each unit's update, before clipping."""
        # The root of a row's factor fits float32 where the factor itself, of a row without gradient, may not.
        self.row_factor_UR = (self.row_UR / self.row_UR.mean(-1, keepdim=True)).rsqrt()
        self.column_factor_UC = self.column_UC.rsqrt()
        for block in self.blocks:
            update_URC = block.view(grad) * self.column_factor_UC[block.unit, None, block.column]
            norm_UR = _row_norms(update_URC) * self.row_factor_UR[block.unit, block.row]
            squares_U[block.unit] += norm_UR.square().sum(-1)

    def apply(self, target: Tensor, grad: Tensor, step_size_U: Tensor) -> None:
        """Subtract ``step_size_U`` times the update from the slice's place in ``target``, flat."""
        row_UR = self.row_factor_UR * step_size_U[:, None]
        for block in self.blocks:
            scaled_URC = block.view(grad) * row_UR[block.unit, block.row, None]
            column_U1C = self.column_factor_UC[block.unit, None, block.column]
            block.view(target).addcmul_(scaled_URC, column_U1C, value=-1.0)


class FullMoment:
    """The running mean of every element's squared gradient, of the slice alone: for vectors and small matrices."""

    def __init__(self, part: Slice, like: Tensor):
        self.part = part
        self.fragments = list(part.fragments())
        self.moment = like.new_zeros(part.stop - part.start)

    def measure(self, weights: Tensor, grad: Tensor, weight_squares_U: Tensor, decay: float, epsilon: float) -> None:
        """Update the running mean, which needs nothing of other ranks, and add up the weights' squares."""
        self._add_squares(self.part.view(weights), weight_squares_U)
        self.moment.mul_(decay).add_(self.part.view(grad).square().add_(epsilon), alpha=1 - decay)

    def square_update(self, grad: Tensor, squares_U: Tensor) -> None:
        """As ``FactoredMoment.square_update``."""
        self.update = self.part.view(grad) * self.moment.rsqrt()
        self._add_squares(self.update, squares_U)

    def apply(self, target: Tensor, _grad: Tensor, step_size_U: Tensor) -> None:
        """As ``FactoredMoment.apply``."""
        for unit, _, place in self.fragments:
            self.part.view(target)[place].addcmul_(self.update[place], step_size_U[unit], value=-1.0)
        del self.update

    def _add_squares(self, values: Tensor, squares_U: Tensor) -> None:
        for unit, _, place in self.fragments:
            squares_U[unit] += torch.linalg.vector_norm(values[place]).square()


def _row_norms(x_URC: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x_URC, dim=-1)
