"""Which part of which parameter this rank's optimizer holds, under every ZeRO stage.

A flat index counts the elements of the whole parameter, all experts included, in row-major order: the same at every
parallel layout.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import deepspeed.comm as dist
import torch
from deepspeed.utils import groups
from torch import Tensor, nn

from parallel.layer import ExpertPlace, expert_place


@dataclass(frozen=True)
class Slice:
    """Elements ``[start, stop)`` of a parameter, at ``offset`` of ``owner``, which the torch optimizer steps."""

    name: str
    shape: tuple[int, ...]  # of the whole parameter
    expert: bool  # the first axis counts experts, and is spread over ranks
    start: int
    stop: int
    owner: Tensor  # float32 master weights, of any shape
    offset: int
    replica: int = 0  # ZeRO 0: this rank among those that hold the same elements
    replicas: int = 1

    def of(self, tensor: Tensor) -> Tensor:
        """This slice of ``tensor``, which has the shape of ``owner``: a 1-D view."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.stop - self.start]

    def share(self) -> "Slice":
        """What this rank writes of it, so that all ranks together write every element once."""
        each = -(-(self.stop - self.start) // self.replicas)
        start = min(self.start + each * self.replica, self.stop)
        stop = min(start + each, self.stop)
        return replace(self, start=start, stop=stop, offset=self.offset + start - self.start, replica=0, replicas=1)


def engine_slices(engine: Any) -> list[Slice]:
    """All slices of this rank, none of them empty.

    Raises:
        ValueError: a parameter is frozen, so no optimizer holds it.
    """
    names = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            raise ValueError(f"parameter {name} is frozen: checkpoints hold only what the optimizer trains")
        names[parameter] = name
    stage = int(engine.zero_optimization_stage())
    find = _stage_3 if stage == 3 else _stage_1_2 if stage else _stage_0
    slices = [_globally(names[parameter], parameter, *place) for parameter, *place in find(engine)]
    return [s for s in slices if s.start < s.stop]


def _globally(
    name: str, parameter: nn.Parameter, start: int, stop: int, owner: Tensor, offset: int, replica: int, replicas: int
) -> Slice:
    """A slice in flat indices of this rank's parameter, in those of the whole one."""
    local_shape = getattr(parameter, "ds_shape", parameter.shape)
    place = expert_place(parameter) or ExpertPlace(first=0, total=local_shape[0])
    shift = place.first * local_shape[1:].numel()
    return Slice(
        name=name,
        shape=(place.total, *local_shape[1:]),
        expert=expert_place(parameter) is not None,
        start=start + shift,
        stop=stop + shift,
        owner=owner,
        offset=offset,
        replica=replica,
        replicas=replicas,
    )


def _stage_0(engine: Any) -> Iterator[tuple[Any, ...]]:
    """Whole parameters; DeepSpeed keeps float32 copies beside bf16 weights."""
    low = getattr(engine.optimizer, "fp16_groups", None)
    for i, group in enumerate(engine.basic_optimizer.param_groups):
        process_group = groups._get_expert_data_parallel_group(group["name"]) if group.get("moe") else None
        replica, replicas = dist.get_rank(group=process_group), dist.get_world_size(group=process_group)
        for j, master in enumerate(group["params"]):
            parameter = low[i][j] if low else master
            yield parameter, 0, master.numel(), master, 0, replica, replicas


def _stage_1_2(engine: Any) -> Iterator[tuple[Any, ...]]:
    """Each group's parameters are concatenated and cut into equal partitions, one per rank of its process group."""
    zero = engine.optimizer
    if hasattr(zero, "bf16_groups"):  # stage 1 with data_types.grad_accum_dtype: fp32
        owners, members = zero.fp32_groups_flat_partition, zero.bf16_groups
        offsets = [[0, *itertools.accumulate(p.numel() for p in group[:-1])] for group in members]
    else:
        owners, members = zero.single_partition_of_fp32_groups, zero.round_robin_bit16_groups
        offsets = zero.round_robin_bit16_offsets
    for i, owner in enumerate(owners):
        begin = dist.get_rank(group=zero.real_dp_process_group[i]) * owner.numel()
        end = begin + owner.numel()
        for parameter, at in zip(members[i], offsets[i], strict=True):
            start, stop = max(at, begin), min(at + parameter.numel(), end)
            yield parameter, start - at, stop - at, owner, start - begin, 0, 1


def _stage_3(engine: Any) -> Iterator[tuple[Any, ...]]:
    """Each parameter is cut into equal parts, the last ones padded; a sub-group's parts lie behind each other."""
    zero = engine.optimizer
    for owner, group, process_group in zip(
        zero.fp32_partitioned_groups_flat, zero.fp16_groups, zero.sub_group_process_groups, strict=True
    ):
        rank, offset = dist.get_rank(group=process_group), 0
        for parameter in group:
            part = parameter.partition_numel()
            yield parameter, rank * part, min((rank + 1) * part, parameter.ds_numel), owner, offset, 0, 1
            offset += part


@torch.no_grad()
def refresh_weights(engine: Any) -> None:
    """Give the network the optimizer's master weights, after these were changed; collective."""
    zero, stage = engine.optimizer, int(engine.zero_optimization_stage())
    if stage == 3:
        zero.checkpoint_event_prologue()  # no parameter may be gathered while its partition changes
        for sub_group in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(sub_group)
        zero.checkpoint_event_epilogue()
    elif stage:
        zero.update_lp_params()
    elif hasattr(zero, "fp16_groups"):
        for low, master in zip(zero.fp16_groups, zero.fp32_groups, strict=True):
            torch._foreach_copy_(low, master)
