"""What the engine of a fake rank holds: groups, experts, elements and bytes, read from the real modules."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from deepspeed.utils import groups
from torch import Tensor

from model.moe.layer import SparseFeedForward
from optim.adafactor import Adafactor
from optim.partition import Partition
from parallel.layer import SpreadFeedForward
from training.engine.parameters import engine_partitions, frozen_partitions, model_parameter_specs


class Groups(NamedTuple):
    """The ranks of the groups that a rank is in."""

    data_parallel: list[int]
    expert_parallel: list[int]  # that together hold one copy of the experts; empty without experts
    expert_data_parallel: list[int]  # that hold the same experts


@dataclass(frozen=True)
class Measured:
    """Counts and bytes of one rank."""

    parameters: int  # of the whole model
    own: int  # elements of the modules that this rank builds, its share of the experts included
    partition: int  # elements of its partitions of trained and frozen parameters, without padding
    groups: Groups
    experts: dict[str, range]  # sparse layer → global numbers of the experts that this rank holds
    bytes: dict[str, int]  # as the parts of ``training.planning.states.States``


def groups_of(engine: Any) -> Groups:
    """Return the groups that the layers were built in."""
    everyone = torch.distributed.get_process_group_ranks(groups._get_data_parallel_group())
    layer = next((module for module in engine.module.modules() if isinstance(module, SpreadFeedForward)), None)
    if layer is None:
        return Groups(everyone, [], [])
    copies = groups._get_expert_data_parallel_group(layer.ep_group_name)
    return Groups(
        everyone,
        torch.distributed.get_process_group_ranks(layer.ep_group),
        torch.distributed.get_process_group_ranks(copies),
    )


def measure(engine: Any, gradients: int) -> Measured:
    """Read an engine after a step.

    Args:
        engine: of the fake rank.
        gradients: bytes of ``gradient_bytes`` when the last backward pass had ended.
    """
    specs = model_parameter_specs(engine.module)
    partitions: list[Partition] = [*engine_partitions(engine), *frozen_partitions(engine)]
    whole = list(_weights(engine))
    return Measured(
        parameters=sum(math.prod(spec.shape) for spec in specs.values()),
        own=sum(spec.numel for spec in specs.values()),
        partition=sum(segment.numel for partition in partitions for segment in partition.held()),
        groups=groups_of(engine),
        experts={
            name: range(layer.experts.first, layer.experts.first + layer.experts.num_local)
            for name, layer in engine.module.named_modules()
            if isinstance(layer, SparseFeedForward)
        },
        bytes={
            "weights": storage_bytes(whole),
            "master": storage_bytes([p.tensor for p in engine_partitions(engine)], but=whole),
            "optimizer": _optimizer_bytes(engine),
            "gradients": gradients,
        },
    )


def gradient_bytes(engine: Any) -> int:
    """Return the bytes of all tensors in which gradients are kept now, DeepSpeed's buckets left out."""
    zero = engine.optimizer
    found: list[Tensor | None] = []
    for parameter in engine.module.parameters():
        found += parameter.grad, getattr(parameter, "grad_accum", None)
    for kept in (getattr(zero, "averaged_gradients", None) or {}, getattr(zero, "all_grad_tensors", None) or {}):
        found += [tensor for tensors in kept.values() for tensor in tensors or ()]
    found += [getattr(zero, "grad_partitions_flat_buffer", None), *getattr(zero, "fp32_groups_gradients_flat", ())]
    return storage_bytes(found, but=[*_buckets(engine), *_weights(engine)])


def storage_bytes(tensors: Iterable[Tensor | None], but: Iterable[Tensor | None] = ()) -> int:
    """Return the bytes of the storages of tensors, each once, without those of others."""
    known = {tensor.untyped_storage()._cdata for tensor in but if tensor is not None}
    found = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(size for storage, size in found.items() if storage not in known)


def _weights(engine: Any) -> Iterator[Tensor]:
    """The model's weights, under ZeRO 3 this rank's parts."""
    for parameter in engine.module.parameters():
        yield getattr(parameter, "ds_tensor", parameter).data


def _buckets(engine: Any) -> Iterator[Tensor]:
    for bucket in getattr(engine.optimizer, "ipg_buckets", {}).values():
        yield from bucket.buffer if isinstance(bucket.buffer, list) else [bucket.buffer]


def _optimizer_bytes(engine: Any) -> int:
    optimizer = engine.basic_optimizer
    if isinstance(optimizer, Adafactor):
        return optimizer.state_nbytes
    values = [value for state in optimizer.state.values() for value in state.values()]
    return storage_bytes(value for value in values if isinstance(value, Tensor))
