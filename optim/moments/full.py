"""Second moments that are kept for every element: of vectors and small matrices.

Shape suffixes: U = units of the partition, N = spans, M = elements of all spans together.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from optim.moments.spans import Spans, norms


class UnitSpan(NamedTuple):
    """Elements of one unit that the partition holds."""

    unit: int  # in the vectors of units
    offset: int  # in the partition
    numel: int


class FullMoments:
    """Running means of every element's squared gradient; a rank keeps those of its own elements alone.

    Args:
        held: what the partition holds of the tensors without factors, in the order of the state.
        like: a tensor of the dtype and device of the weights.
        epsilon: added to the squared gradient.
        max_elements: most elements that are worked on at a time.
    """

    def __init__(self, held: Sequence[UnitSpan], like: Tensor, epsilon: float, max_elements: int):
        self.epsilon = epsilon
        self.moment = like.new_zeros(sum(span.numel for span in held))
        self.blocks: list[_Block] = []
        position = 0
        for spans in _blocks(held, max_elements):
            numel = sum(span.numel for span in spans)
            self.blocks.append(_Block(spans, self.moment.narrow(0, position, numel)))
            position += numel

    def update(self, weights: Tensor, grad: Tensor, squares_2U: Tensor, decay: float) -> None:
        """Update the running means, which needs nothing from other ranks, and measure weights and update.

        Args:
            weights, grad: the partition's, flat.
            squares_2U: sums of squares of weights and update are added here.
            decay: of the running means.
        """
        for block in self.blocks:
            block.update(weights, grad, squares_2U, decay, self.epsilon)

    def shrink(self, weights: Tensor, rate_U: Tensor, weight_decay: float) -> None:
        """Multiply the weights by 1 - ``rate_U`` ``weight_decay``."""
        for block in self.blocks:
            rate_M = block.spread(rate_U)
            block.spans.subtract_product(weights, block.spans.gather(weights), rate_M, weight_decay)

    def apply(self, target: Tensor, step_size_U: Tensor) -> None:
        """Subtract ``step_size_U`` times the update from ``target``, flat."""
        for block in self.blocks:
            block.spans.subtract_product(target, block.update_M, block.spread(step_size_U))
            del block.update_M


class _Block:
    update_M: Tensor  # between ``update`` and ``apply``

    def __init__(self, spans: Sequence[UnitSpan], moment_M: Tensor):
        self.moment_M = moment_M
        self.spans = Spans([s.offset for s in spans], [s.numel for s in spans], moment_M.device)
        self.unit_N = torch.tensor([span.unit for span in spans], device=moment_M.device)

    def update(self, weights: Tensor, grad: Tensor, squares_2U: Tensor, decay: float, epsilon: float) -> None:
        grad_M = self.spans.gather(grad).to(weights.dtype)
        self.moment_M.mul_(decay).add_(grad_M.square().add_(epsilon), alpha=1 - decay)
        self.update_M = grad_M.mul_(self.moment_M.rsqrt())
        norms_2N = norms(self.spans.views(weights), self.spans.split(self.update_M))
        squares_2U.index_add_(1, self.unit_N, norms_2N.square_())  # no unit twice: the order of the sums is fixed

    def spread(self, values_U: Tensor) -> Tensor:
        return self.spans.spread(values_U.index_select(0, self.unit_N))


def _blocks(held: Sequence[UnitSpan], max_elements: int) -> Iterator[list[UnitSpan]]:
    """Spans in order, cut where a block is full; no unit is twice in a block."""
    block: list[UnitSpan] = []
    room = max_elements
    for unit, offset, numel in held:
        for start in range(0, numel, max_elements):
            some = min(max_elements, numel - start)
            if some > room:
                yield block
                block, room = [], max_elements
            block.append(UnitSpan(unit, offset + start, some))
            room -= some
    if block:
        yield block
