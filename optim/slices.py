"""What part of which parameter a flat tensor holds, as rectangles that row and column sums can be taken of.

ZeRO gives each rank a slice of a flat concatenation of parameters: a slice begins and ends anywhere in a matrix. It is
cut into blocks, the rest of a row, whole rows, the begin of a row, on which everything is a few vector operations.

Shape suffixes: U = units (experts, or 1), R = rows, C = columns.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ParameterSpec:
    """A parameter of the model, whole, however its elements are spread over ranks.

    A parameter whose leading axis runs over experts counts as that many tensors, its units: each is factored, scaled
    and clipped on its own (t5x), so that the result does not depend on how many experts a rank holds.
    """

    name: str
    shape: tuple[int, ...]
    first_expert: int | None = None  # global number of the first of the leading axis; None: no expert axis

    @property
    def units(self) -> int:
        """Experts of the leading axis, or 1."""
        return 1 if self.first_expert is None else self.shape[0]

    @property
    def unit_shape(self) -> tuple[int, ...]:
        """Shape of one unit."""
        return self.shape if self.first_expert is None else self.shape[1:]

    @property
    def unit_numel(self) -> int:
        """Elements of one unit."""
        return prod(self.unit_shape)

    @property
    def numel(self) -> int:
        """Elements of all units."""
        return prod(self.shape)

    def is_factored(self, min_dim_size: int) -> bool:
        """Whether a unit is a matrix with both dimensions of at least ``min_dim_size``."""
        return len(self.unit_shape) == 2 and min(self.unit_shape) >= min_dim_size

    def unit_key(self, unit: int) -> str:
        """Name of a unit that is the same at every layout: the parameter's, and the expert's global number."""
        return self.name if self.first_expert is None else f"{self.name}/expert_{self.first_expert + unit}"


@dataclass(frozen=True)
class Block:
    """Consecutive elements of a flat tensor that are a rectangle ``[units, rows, columns]`` of a parameter."""

    offset: int  # of the first element in the flat tensor
    unit: slice
    row: slice
    column: slice

    @property
    def shape(self) -> tuple[int, int, int]:
        """Units, rows, columns."""
        u, r, c = self.unit, self.row, self.column
        return u.stop - u.start, r.stop - r.start, c.stop - c.start

    def view(self, flat: Tensor) -> Tensor:
        """The block's elements, ``[units, rows, columns]``, as a view of ``flat``."""
        return flat.narrow(0, self.offset, prod(self.shape)).view(self.shape)


@dataclass(frozen=True)
class Slice:
    """Elements ``[start, stop)`` of a parameter, flattened, at ``offset`` of a flat tensor; empty if start == stop."""

    spec: ParameterSpec
    start: int
    stop: int
    offset: int

    def view(self, flat: Tensor) -> Tensor:
        """The slice of ``flat``, 1-D."""
        return flat.narrow(0, self.offset, self.stop - self.start)

    def blocks(self, rows: int, columns: int, max_elements: int) -> list[Block]:
        """The slice as blocks of at most ``max_elements`` (at least one row), of units of ``rows`` x ``columns``."""
        size, blocks = rows * columns, []
        for start, stop in _cut(self.start, self.stop, size):
            units = range(start // size, -(-stop // size))
            if stop - start == len(units) * size <= max_elements * len(units):
                for some in _split(units, max_elements // size):
                    blocks.append((some.start * size, some, range(rows), range(columns)))
                continue
            for unit in units:
                low, high = max(start, unit * size), min(stop, (unit + 1) * size)
                for some, part in _unit_rectangles(low - unit * size, high - unit * size, columns, max_elements):
                    position = unit * size + some.start * columns + part.start
                    blocks.append((position, range(unit, unit + 1), some, part))
        return [
            Block(self.offset + position - self.start, *(slice(axis.start, axis.stop) for axis in axes))
            for position, *axes in blocks
        ]

    def fragments(self) -> Iterator[tuple[int, range, slice]]:
        """For each unit that the slice touches: the unit, which of its elements, and where in the slice they are."""
        size = self.spec.unit_numel
        for unit in range(self.start // size, -(-self.stop // size)):
            low, high = max(self.start, unit * size), min(self.stop, (unit + 1) * size)
            if low < high:
                yield unit, range(low - unit * size, high - unit * size), slice(low - self.start, high - self.start)


@dataclass(frozen=True, eq=False)
class Shard:
    """A tensor that the optimizer is handed, and the slices of parameters that it holds on this rank.

    Every rank of ``group`` lists the same parameters in the same order, those that it holds nothing of as empty
    slices, since all of them take part in the sums over the group.
    """

    tensor: Tensor
    slices: tuple[Slice, ...]
    group: Any = None  # process group of the ranks that share these parameters; None: this process alone
    partitioned: bool = False  # whether the group's ranks hold different elements, or each all of them
    replicas: int = 1  # ranks of the group
    rank: int = 0  # this process in the group
    device: torch.device | None = None  # where collectives of the group run, when that is not the tensor's device


def whole(tensor: Tensor, spec: ParameterSpec, **place: Any) -> Shard:
    """A parameter that is not partitioned; ``place``: fields of ``Shard``."""
    return Shard(tensor, (Slice(spec, 0, spec.numel, 0),), **place)


def parameter_specs(
    named_parameters: Iterable[tuple[str, Tensor]], first_experts: Mapping[Tensor, int] | None = None
) -> dict[Tensor, ParameterSpec]:
    """Specs of whole parameters.

    Args:
        named_parameters: as ``nn.Module.named_parameters`` gives them.
        first_experts: of each parameter whose leading axis runs over experts, the global number of its first expert.
    """
    first = first_experts or {}
    return {p: ParameterSpec(name, tuple(p.shape), first.get(p)) for name, p in named_parameters}


def _cut(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """``[start, stop)`` at multiples of ``size``: up to the first, whole ones together, from the last; none empty."""
    first = min(-(-start // size) * size, stop)
    last = max(stop // size * size, first)
    for low, high in ((start, first), (first, last), (last, stop)):
        if low < high:
            yield low, high


def _unit_rectangles(start: int, stop: int, columns: int, max_elements: int) -> Iterator[tuple[range, range]]:
    """Rows and columns of the rectangles that make up elements ``[start, stop)`` of one matrix."""
    for low, high in _cut(start, stop, columns):
        first, column = divmod(low, columns)
        if high - low < columns:
            yield range(first, first + 1), range(column, column + high - low)
        else:
            for rows in _split(range(first, high // columns), max(1, max_elements // columns)):
                yield rows, range(columns)


def _split(whole: range, size: int) -> Iterator[range]:
    """Consecutive parts of at most ``size``."""
    for start in range(whole.start, whole.stop, size):
        yield range(start, min(start + size, whole.stop))
