"""Parts of rows: what a segment that begins or ends within a row holds of that row.

Shape suffixes: U = units of the partition, R = rows, C = columns of all units one after another, N = parts,
M = elements of all parts together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from optim.moments.matrices import Matrices
from optim.moments.spans import Spans, norms


class PartsOfRows:
    """All parts of rows that a partition holds: at most two of each unit, never two of one row.

    Args:
        held: the matrices of the partition.
        device: of the weights.
    """

    scaled_M: Tensor  # between ``measure`` and ``apply``: gradients with their columns' factors

    def __init__(self, held: Sequence[Matrices], device: torch.device):
        parts = [(m, part) for m in held for part in m.parts]
        lengths = [len(part.column) for _, part in parts]
        units = [m.start.units + part.unit for m, part in parts]
        rows = [m.start.rows + part.unit * m.rows + part.row.start for m, part in parts]
        columns = [m.start.columns + part.unit * m.columns + part.column.start for m, part in parts]
        self.spans = Spans([part.offset for _, part in parts], lengths, device)
        self.columns = Spans(columns, lengths, device)
        self.unit_N, self.row_N = torch.tensor(units, device=device), torch.tensor(rows, device=device)
        last = {unit: index for index, unit in enumerate(units)}
        first = {unit: len(units) - 1 - index for index, unit in enumerate(reversed(units))}
        # Parts that may be added to the columns at once: the second of a unit apart, which may overlap the first.
        firsts = list(first.values())
        seconds = [index for unit, index in last.items() if index != first[unit]]
        self.disjoint = [some for some in (firsts, seconds) if some]

    def sum_squares(self, grad: Tensor, row_R: Tensor, column_C: Tensor) -> None:
        """Write the parts' sums of squares by row, and add their squares to the columns."""
        if not self.disjoint:
            return
        grads = [part.to(row_R.dtype) for part in self.spans.views(grad)]
        row_R.index_copy_(0, self.row_N, norms(grads)[0].square_())
        columns = self.columns.views(column_C)
        for some in self.disjoint:
            chosen = [grads[index] for index in some]
            torch._foreach_addcmul_([columns[index] for index in some], chosen, chosen)

    def measure(self, weights: Tensor, grad: Tensor, column_factor_C: Tensor, norms_2R: Tensor) -> None:
        """Write the norms of the parts of the weights, and of the gradients with their columns' factors."""
        if not self.disjoint:
            return
        self.scaled_M = self.columns.gather(column_factor_C).mul_(self.spans.gather(grad))
        norms_2R.index_copy_(1, self.row_N, norms(self.spans.views(weights), self.spans.split(self.scaled_M)))

    def shrink(self, weights: Tensor, rate_U: Tensor, weight_decay: float) -> None:
        """Multiply the weights by 1 - ``rate_U`` ``weight_decay``."""
        if self.disjoint:
            rate_M = self.spans.spread(rate_U.index_select(0, self.unit_N))
            self.spans.subtract_product(weights, self.spans.gather(weights), rate_M, weight_decay)

    def apply(self, target: Tensor, row_factor_R: Tensor) -> None:
        """Subtract the update, with these factors of rows, from ``target``, flat."""
        if not self.disjoint:
            return
        factor_M = self.spans.spread(row_factor_R.index_select(0, self.row_N))
        self.spans.subtract_product(target, self.scaled_M, factor_M)
        del self.scaled_M
