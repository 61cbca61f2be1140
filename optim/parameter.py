"""A parameter of the model as the optimizer and the checkpoints know it: its global shape and its expert axis."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from torch import Tensor


class ExpertAxis(NamedTuple):
    """The leading axis of a parameter that runs over the experts of a sparse layer."""

    total: int  # experts of the layer
    held: range  # global numbers of those that this rank holds
    split: bool  # whether the experts are dealt to the ranks of an expert-parallel group, or every rank holds all


@dataclass(frozen=True)
class ParameterSpec:
    """Name, global shape and expert axis of a parameter, however its elements are spread over ranks.

    A parameter with an expert axis counts as that many tensors, its units: each is factored, scaled and clipped on its
    own (t5x), so that the result does not depend on how many experts a rank holds. Without one the whole parameter is
    the only unit.
    """

    name: str
    shape: tuple[int, ...]  # of the whole parameter, all experts included
    expert_axis: ExpertAxis | None = None

    @property
    def units(self) -> int:
        """Units that this rank holds: experts, or 1."""
        return 1 if self.expert_axis is None else len(self.expert_axis.held)

    @property
    def unit_shape(self) -> tuple[int, ...]:
        """Shape of one unit."""
        return self.shape if self.expert_axis is None else self.shape[1:]

    @property
    def unit_numel(self) -> int:
        """Elements of one unit."""
        return prod(self.unit_shape)

    @property
    def numel(self) -> int:
        """Elements of the units that this rank holds."""
        return self.units * self.unit_numel

    @property
    def first_element(self) -> int:
        """Flat index, in the whole parameter, of the first element that this rank holds."""
        return 0 if self.expert_axis is None else self.expert_axis.held.start * self.unit_numel

    def is_factored(self, min_dim_size: int) -> bool:
        """Return whether a unit is a matrix with both dimensions of at least ``min_dim_size``."""
        return len(self.unit_shape) == 2 and min(self.unit_shape) >= min_dim_size

    def unit_key(self, unit: int) -> str:
        """Return the name of a unit, the same at every layout: the parameter's, and the expert's global number."""
        return self.name if self.expert_axis is None else f"{self.name}/expert_{self.expert_axis.held[unit]}"


def parameter_specs(
    named_parameters: Iterable[tuple[str, Tensor]], expert_axes: Mapping[Tensor, ExpertAxis] | None = None
) -> dict[Tensor, ParameterSpec]:
    """Return the spec of every parameter.

    Args:
        named_parameters: as ``nn.Module.named_parameters`` gives them, before or after ZeRO 3 has partitioned them.
        expert_axes: of the parameters that have one; their tensors hold this rank's experts.
    """
    specs = {}
    for name, parameter in named_parameters:
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))  # under ZeRO 3 the tensor itself is empty
        axis = (expert_axes or {}).get(parameter)
        specs[parameter] = ParameterSpec(name, shape if axis is None else (axis.total, *shape[1:]), axis)
    return specs
