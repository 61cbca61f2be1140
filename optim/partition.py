"""The flat tensor that ZeRO gives this rank's optimizer, and which elements of which parameters it holds."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optim.parameter import ParameterSpec


@dataclass(frozen=True)
class Segment:
    """Contiguous elements ``[start, stop)`` of one parameter, at ``offset`` of a partition; empty if start == stop.

    Elements are counted flat, in row-major order, from the first element that this rank holds of the parameter.
    """

    spec: ParameterSpec
    start: int
    stop: int
    offset: int

    @property
    def numel(self) -> int:
        """Elements of the segment."""
        return self.stop - self.start

    @property
    def elements(self) -> range:
        """The same elements counted in the whole parameter, all experts included."""
        return range(self.spec.first_element + self.start, self.spec.first_element + self.stop)

    def view(self, flat: Tensor) -> Tensor:
        """Return the segment of a tensor ``flat`` with the elements of the partition, ``[numel]``."""
        return flat.narrow(0, self.offset, self.numel)

    def unit_runs(self) -> Iterator[tuple[int, range, slice]]:
        """Yield, for each unit that the segment touches: the unit, which of its elements, and where in the segment."""
        size = self.spec.unit_numel
        for unit in range(self.start // size, -(-self.stop // size)):
            low, high = max(self.start, unit * size), min(self.stop, (unit + 1) * size)
            if low < high:
                yield unit, range(low - unit * size, high - unit * size), slice(low - self.start, high - self.start)


@dataclass(frozen=True, eq=False)
class Partition:
    """A tensor that the torch optimizer steps, and the segments of parameters that it holds.

    Every rank of ``group`` lists the same parameters in the same order, those that it holds nothing of as empty
    segments, because all of them take part in the sums over the group.
    """

    tensor: Tensor
    segments: tuple[Segment, ...]
    group: Any = None  # process group of the ranks that share these parameters; None: this process alone
    is_split: bool = False  # whether the group's ranks hold different elements, or each holds all of them
    group_size: int = 1  # ranks of the group
    group_rank: int = 0  # this process in the group
    device: torch.device | None = None  # where collectives of the group run, when that is not the tensor's device

    def held(self) -> Iterator[Segment]:
        """Yield the segments that are not empty."""
        return (segment for segment in self.segments if segment.numel)


def whole(tensor: Tensor, spec: ParameterSpec, **group: Any) -> Partition:
    """Return the partition of a parameter that ZeRO does not split; ``group``: fields of ``Partition``."""
    return Partition(tensor, (Segment(spec, 0, spec.numel, 0),), **group)
