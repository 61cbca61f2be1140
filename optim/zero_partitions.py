"""Which slices of which parameters the tensors hold that DeepSpeed gives its optimizer, read from the engine once.

DeepSpeed 0.19.8 wraps the optimizer, by ZeRO stage and precision, in one of four classes, or not at all (stage 0 with
float32 weights). All put flat tensors, or copies, in place of the parameters.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import deepspeed.comm as dist
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import groups
from torch import Tensor

from optim.slices import ParameterSpec, Shard, Slice, whole

Specs = Mapping[Tensor, ParameterSpec]


def read_layout(optimizer: Any, specs: Specs) -> list[Shard]:
    """The shards of this rank; collective over all ranks.

    Args:
        optimizer: ``engine.optimizer``, the wrapper or the optimizer itself.
        specs: of the model's parameters.

    Raises:
        RuntimeError: the shards do not hold every element of every trainable parameter exactly once.
        TypeError: a wrapper that this does not know.
    """
    readers = {
        DeepSpeedZeroOptimizer: _stages_1_and_2,
        DeepSpeedZeroOptimizer_Stage3: _stage_3,
        BF16_Optimizer: _bf16_stage_1,
        FP16_UnfusedOptimizer: _stage_0_master_copies,
    }
    if isinstance(optimizer, torch.optim.Optimizer):
        shards = list(_stage_0(optimizer, specs))
    elif type(optimizer) in readers:
        shards = list(readers[type(optimizer)](optimizer, specs))
    else:
        raise TypeError(f"the layout of {type(optimizer).__name__} is not known")
    check_cover(shards, specs)
    return shards


def _stages_1_and_2(zero: Any, specs: Specs) -> Iterator[Shard]:
    for index, tensor in enumerate(zero.single_partition_of_fp32_groups):
        parameters = zip(zero.round_robin_bit16_groups[index], zero.round_robin_bit16_offsets[index], strict=True)
        placed = [(specs[p], offset) for p, offset in parameters]
        yield _partition(tensor, placed, zero.real_dp_process_group[index])


def _bf16_stage_1(wrapper: Any, specs: Specs) -> Iterator[Shard]:
    for index, tensor in enumerate(wrapper.fp32_groups_flat_partition):
        placed, offset = [], 0
        for parameter in wrapper.bf16_groups[index]:
            placed.append((specs[parameter], offset))
            offset += parameter.numel()
        yield _partition(tensor, placed, wrapper.real_dp_process_group[index])


def _partition(tensor: Tensor, placed: list[tuple[ParameterSpec, int]], group: Any) -> Shard:
    """One of equal consecutive parts, one per rank, of a concatenation of parameters at the given offsets."""
    low = dist.get_rank(group=group) * tensor.numel()
    high = low + tensor.numel()
    slices = []
    for spec, offset in placed:
        start, stop = (min(max(edge - offset, 0), spec.numel) for edge in (low, high))
        slices.append(Slice(spec, start, stop, offset + start - low if start < stop else 0))
    return Shard(tensor, tuple(slices), **_place(group), partitioned=True)


def _stage_3(zero: Any, specs: Specs) -> Iterator[Shard]:
    for index, tensor in enumerate(zero.fp32_partitioned_groups_flat):
        group = zero.sub_group_process_groups[index]
        rank, slices, offset = dist.get_rank(group=group), [], 0
        for parameter in zero.fp16_groups[index]:
            spec, size = specs[parameter], parameter.partition_numel()
            start, stop = min(rank * size, spec.numel), min((rank + 1) * size, spec.numel)
            slices.append(Slice(spec, start, stop, offset))
            offset += size
        yield Shard(tensor, tuple(slices), **_place(group), partitioned=True)


def _stage_0(optimizer: torch.optim.Optimizer, specs: Specs) -> Iterator[Shard]:
    for param_group in optimizer.param_groups:
        for parameter in param_group["params"]:
            yield whole(parameter, specs[parameter], **_place(_replica_group(param_group)))


def _stage_0_master_copies(wrapper: Any, specs: Specs) -> Iterator[Shard]:
    for param_group, parameters, copies in zip(
        wrapper.optimizer.param_groups, wrapper.fp16_groups, wrapper.fp32_groups, strict=True
    ):
        for parameter, copy in zip(parameters, copies, strict=True):
            yield whole(copy, specs[parameter], **_place(_replica_group(param_group)))


def _replica_group(param_group: dict[str, Any]) -> Any:
    """The ranks that hold the same parameters, all of them or, for experts, the expert-data-parallel group."""
    if param_group.get("moe"):
        return groups._get_expert_data_parallel_group(param_group["name"])
    return groups._get_data_parallel_group()


def _place(group: Any) -> dict[str, Any]:
    return {
        "group": group,
        "replicas": dist.get_world_size(group=group),
        "rank": dist.get_rank(group=group),
        "device": torch.device(get_accelerator().current_device_name()),
    }


def check_cover(shards: list[Shard], specs: Specs) -> None:
    """Raise RuntimeError unless all ranks' slices hold every element of the trainable parameters exactly once."""
    names = [part.spec.name for shard in shards for part in shard.slices]
    trainable = [spec.name for parameter, spec in specs.items() if parameter.requires_grad and spec.numel]
    if sorted(names) != sorted(trainable):
        wrong = sorted(set(names) ^ set(trainable)) or names
        raise RuntimeError(f"the optimizer does not hold every trainable parameter once: {wrong}")
    for shard in shards:
        own = torch.tensor([(part.start, part.stop) for part in shard.slices], device=shard.device)
        ranks = [own]
        if shard.partitioned:
            ranks = [torch.empty_like(own) for _ in range(shard.replicas)]
            dist.all_gather(ranks, own, group=shard.group)
        for part, edges in zip(shard.slices, torch.stack(ranks, dim=1).tolist(), strict=True):
            if not _follow_one_another(edges, part.spec.numel):
                raise RuntimeError(f"the ranks' slices do not make up {part.spec.name} exactly: {edges}")
        places = sorted((part.offset, part.offset + part.stop - part.start) for part in shard.slices)
        places = [(low, high) for low, high in places if low < high]
        for (_, end), (begin, _) in itertools.pairwise([*places, (shard.tensor.numel(),) * 2]):
            if begin < end:
                raise RuntimeError(f"slices overlap at {begin}-{end} of a tensor of {shard.tensor.numel()}: {places}")


def _follow_one_another(edges: list[list[int]], numel: int) -> bool:
    position = 0
    for start, stop in sorted(edge for edge in edges if edge[0] < edge[1]):
        if start != position:
            return False
        position = stop
    return position == numel
