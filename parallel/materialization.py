"""Gives the parameters of a model on the meta device their memory, a few modules at a time, and partitions them.

A model that is too large for one rank is never whole on one: under ZeRO 3 the parameters of a module are made, filled
and partitioned before those of the next one. DeepSpeed would partition them alike, but only when all are there.
"""

from collections.abc import Callable, Iterator
from typing import Any

import deepspeed
import torch
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from deepspeed.utils import groups
from torch import nn

Named = tuple[str, nn.Module]
Fill = Callable[[list[Named]], None]


def materialize(
    model: nn.Module,
    device: str,
    dtype: torch.dtype,
    fill: Fill,
    *,
    zero3: dict[str, Any] | None = None,
    told: Callable[[], None] = lambda: None,
) -> None:
    """Give every parameter of ``model`` memory and values, in the order of ``named_parameters``; collective.

    No more is whole at a time than the parameters that the largest module itself owns. Attributes of parameters, and
    whether they need a gradient, are kept; the parameters themselves are replaced.

    Args:
        model: on the meta device.
        device: of the parameters.
        dtype: of the parameters.
        fill: sets the values of the parameters that the given modules, with their names, themselves own.
        zero3: DeepSpeed's configuration, if its ZeRO 3 is to find the parameters partitioned.
        told: called after each few modules.
    """
    partition = None if zero3 is None else Partitioner(model, zero3)
    for modules in _batches(model):
        for _, module in modules:
            for name, parameter in module.named_parameters(recurse=False):
                made = nn.Parameter(torch.empty_like(parameter, device=device, dtype=dtype), parameter.requires_grad)
                made.__dict__.update(parameter.__dict__)
                module.register_parameter(name, made)
        fill(modules)
        if partition is not None:
            partition([p for _, module in modules for p in module.parameters(recurse=False)])
        told()


def _batches(model: nn.Module) -> Iterator[list[Named]]:
    """Yield modules with parameters of their own, in order, at most as large together as the largest alone."""
    owners = [(name, module) for name, module in model.named_modules() if _size(module)]
    most = max(_size(module) for _, module in owners)
    batch: list[Named] = []
    for named in owners:
        if batch and sum(_size(module) for _, module in [*batch, named]) > most:
            yield batch
            batch = []
        batch.append(named)
    yield batch


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


class Partitioner:
    """Partitions parameters as ``deepspeed.initialize`` would under ZeRO 3: experts within their own group.

    DeepSpeed takes the group from an attribute that ``deepspeed.initialize`` sets, and leaves alone what is partitioned
    before.

    Args:
        model: that the parameters are of.
        options: DeepSpeed's configuration.
    """

    def __init__(self, model: nn.Module, options: dict[str, Any]):
        self.options = options
        self.grouped = any(isinstance(module, AutoEPMoELayer) for module in model.modules())
        self.convert: Callable[..., None] | None = None

    def __call__(self, parameters: list[nn.Parameter]) -> None:
        """Leave of each parameter this rank's partition; collective, with equal values on all ranks of a group."""
        if self.grouped:
            for parameter in parameters:
                setattr(parameter, "ds_zero_partition_process_group", _group_of(parameter))  # noqa: B010
        if self.convert is None:
            deepspeed.zero.Init(module=nn.ParameterList(parameters), config_dict_or_path=self.options)
            self.convert = parameters[0].convert_to_zero_parameters  # type: ignore[attr-defined]
        else:
            self.convert(param_list=parameters)


def _group_of(parameter: nn.Parameter) -> Any:
    name = getattr(parameter, "ds_zero_partition_group_name", None)
    # The very objects that the engine takes: it compares them.
    return groups._get_expert_data_parallel_group(name) if name else groups._get_sequence_data_parallel_group()
