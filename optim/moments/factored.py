"""Second moments kept as means of rows and columns (Shazeer & Stern 2018, algorithm 4), of all matrices at once.

A step passes over the gradients three times, with a sum over ranks after the first two: the factors need the means of
whole rows and columns, clipping needs the root mean square (RMS) of whole updates.

    ``sum_squares`` → sum over ranks → ``update``, ``measure`` → sum over ranks → ``apply``

Shape suffixes: U = units of the partition or of one shape; R = rows, C = columns of all units one after another or,
behind U or S, of one; S = a stack's dimensions before its rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from optim.moments.matrices import Matrices, Sizes
from optim.moments.parts import PartsOfRows
from optim.partition import Segment


class FactoredMoments:
    """Running means of the squared gradient over each row and each column; the same on all ranks of the partition.

    Units are numbered shape by shape, and the factored ones before all others.

    Args:
        segments: of the partition, those whose units are factored.
        like: a tensor of the dtype and device of the weights.
        epsilon: added to the squared gradient.
        max_elements: most elements that are worked on at a time.
    """

    # Between ``measure`` and ``apply``. The root of a row's factor fits float32 where the factor itself, of a row
    # without gradient, may not.
    row_factor_R: Tensor
    column_factor_C: Tensor

    def __init__(self, segments: Sequence[Segment], like: Tensor, epsilon: float, max_elements: int):
        shapes = dict.fromkeys(segment.spec.unit_shape for segment in segments)
        self.matrices: list[Matrices] = []
        self.sizes = Sizes()
        for shape in shapes:
            alike = [segment for segment in segments if segment.spec.unit_shape == shape]
            self.matrices.append(Matrices(shape, alike, self.sizes, max_elements))
            self.sizes = self.matrices[-1].stop
        self.held = [m for m in self.matrices if m.stacks or m.parts]
        self.parts = PartsOfRows(self.held, like.device)
        self.epsilon = epsilon
        self.means = like.new_zeros(self.sizes.rows + self.sizes.columns)
        self.lengths = torch.cat(  # what sums over rows and columns are divided by
            [like.new_empty(0)]
            + [like.new_full((m.count * m.rows,), m.columns) for m in self.matrices]
            + [like.new_full((m.count * m.columns,), m.rows) for m in self.matrices]
        )

    def units(self, segment: Segment) -> slice:
        """Return where the units of a segment are in the vectors of units."""
        found = self._matrices(segment)
        first = found.start.units + found.first_units[segment]
        return slice(first, first + segment.spec.units)

    def row_and_column(self, segment: Segment, unit: int) -> tuple[Tensor, Tensor]:
        """Return the means of one unit's rows and columns, views."""
        found = self._matrices(segment)
        row_R, column_C = self._split(self.means)
        index = found.first_units[segment] + unit
        return found.of_rows(row_R)[index], found.of_columns(column_C)[index]

    def _matrices(self, segment: Segment) -> Matrices:
        return next(m for m in self.matrices if segment in m.first_units)

    def _split(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        row_R, column_C = flat.split((self.sizes.rows, self.sizes.columns))
        return row_R, column_C

    def sum_squares(self, grad: Tensor) -> Tensor:
        """Return this rank's share of the sums of squares of gradients by row and column, laid out as ``means``."""
        sums = torch.zeros_like(self.means)
        row_R, column_C = self._split(sums)
        self.parts.sum_squares(grad, row_R, column_C)
        for m in self.held:
            row_UR, column_UC = m.of_rows(row_R), m.of_columns(column_C)
            for stack in m.stacks:
                square_SRC = stack.view(grad).to(sums.dtype).square()
                torch.sum(square_SRC, -1, out=stack.of_rows(row_UR))
                if len(stack.row) == m.rows:
                    torch.sum(square_SRC, -2, out=stack.of_units(column_UC))
                else:
                    stack.of_units(column_UC).add_(square_SRC.sum(-2))
                del square_SRC  # before the next one is made
        return sums

    def update(self, sums: Tensor, decay: float) -> None:
        """Update the running means.

        Args:
            sums: ``sum_squares`` of all ranks together; overwritten.
            decay: of the running means.
        """
        sums.div_(self.lengths).add_(self.epsilon)
        self.means.mul_(decay).add_(sums, alpha=1 - decay)

    def measure(self, weights: Tensor, grad: Tensor, squares_2U: Tensor) -> None:
        """Write this rank's part of the sums of squares of each unit's weights and update, before clipping.

        Args:
            weights, grad: the partition's, flat.
            squares_2U: zeros.
        """
        if not self.held:
            return
        row_R, column_C = self._split(self.means)
        self.column_factor_C = column_C.rsqrt()
        self.row_factor_R = torch.empty_like(row_R)  # of shapes that this rank holds nothing of: left so
        for m in self.held:
            row_UR = m.of_rows(row_R)
            torch.div(row_UR, row_UR.mean(-1, keepdim=True), out=m.of_rows(self.row_factor_R))
        self.row_factor_R.rsqrt_()
        norms_2R = row_R.new_zeros(2, self.sizes.rows)  # of weights; of gradients with their columns' factors
        weight_norms_R, update_norms_R = norms_2R
        self.parts.measure(weights, grad, self.column_factor_C, norms_2R)
        for m in self.held:
            column_UC = m.of_columns(self.column_factor_C)
            weight_norms_UR, update_norms_UR = m.of_rows(weight_norms_R), m.of_rows(update_norms_R)
            for stack in m.stacks:
                _row_norms(stack.view(weights), out=stack.of_rows(weight_norms_UR))
                column_S1C = stack.of_units(column_UC)[..., None, :]
                _row_norms(stack.view(grad) * column_S1C, out=stack.of_rows(update_norms_UR))
        update_norms_R.mul_(self.row_factor_R)
        norms_2R.square_()
        for m in self.held:
            torch.sum(m.of_rows(norms_2R), -1, out=m.of_units(squares_2U))

    def shrink(self, weights: Tensor, rate_U: Tensor, weight_decay: float) -> None:
        """Multiply the weights by 1 - ``rate_U`` ``weight_decay``."""
        for m in self.held:
            for stack in m.stacks:
                own_SRC = stack.view(weights)
                own_SRC.addcmul_(own_SRC, stack.of_units(m.of_units(rate_U))[..., None, None], value=-weight_decay)
        self.parts.shrink(weights, rate_U, weight_decay)

    def apply(self, target: Tensor, grad: Tensor, step_size_U: Tensor) -> None:
        """Subtract ``step_size_U`` times the update from ``target``, flat."""
        if not self.held:
            return
        for m in self.held:
            m.of_rows(self.row_factor_R).mul_(m.of_units(step_size_U)[:, None])
        self.parts.apply(target, self.row_factor_R)
        for m in self.held:
            row_UR, column_UC = m.of_rows(self.row_factor_R), m.of_columns(self.column_factor_C)
            for stack in m.stacks:
                row_SR1, column_S1C = stack.of_rows(row_UR)[..., None], stack.of_units(column_UC)[..., None, :]
                stack.view(target).addcmul_(stack.view(grad) * row_SR1, column_S1C, value=-1.0)
        del self.row_factor_R, self.column_factor_C


def _row_norms(x_SRC: Tensor, out: Tensor) -> None:
    torch.linalg.vector_norm(x_SRC, dim=-1, out=out)
