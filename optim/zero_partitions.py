"""The partitions that DeepSpeed gives its optimizer: which segments of which parameters each flat tensor holds.

DeepSpeed 0.19.8 wraps the optimizer, by ZeRO stage and precision, in one of four classes, or not at all (stage 0 with
float32 weights). All replace the parameters by flat tensors or copies.

Shape suffixes: S segments of a partition, one of each parameter, G ranks of its group, 2 start and stop.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
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

from optim.parameter import ParameterSpec
from optim.partition import Partition, Segment, whole

Specs = Mapping[Tensor, ParameterSpec]


def read_partitions(optimizer: Any, specs: Specs) -> list[Partition]:
    """Return this rank's partitions; collective over all ranks.

    Args:
        optimizer: ``engine.optimizer``, the wrapper or the optimizer itself.
        specs: of all parameters of the model.

    Raises:
        RuntimeError: the partitions do not hold every element of every trainable parameter exactly once.
        TypeError: an unknown wrapper.
    """
    readers = {
        DeepSpeedZeroOptimizer: _stages_1_and_2,
        DeepSpeedZeroOptimizer_Stage3: _stage_3,
        BF16_Optimizer: _bf16_stage_1,
        FP16_UnfusedOptimizer: _stage_0_master_copies,
    }
    if isinstance(optimizer, torch.optim.Optimizer):
        partitions = list(_stage_0(optimizer, specs))
    elif type(optimizer) in readers:
        partitions = list(readers[type(optimizer)](optimizer, specs))
    else:
        raise TypeError(f"the partitions of {type(optimizer).__name__} are unknown")
    check_cover(partitions, specs)
    return partitions


def _stages_1_and_2(zero: Any, specs: Specs) -> Iterator[Partition]:
    for index, tensor in enumerate(zero.single_partition_of_fp32_groups):
        parameters = zip(zero.round_robin_bit16_groups[index], zero.round_robin_bit16_offsets[index], strict=True)
        offsets = [(specs[p], offset) for p, offset in parameters]
        yield _equal_share(tensor, offsets, zero.real_dp_process_group[index])


def _bf16_stage_1(wrapper: Any, specs: Specs) -> Iterator[Partition]:
    for index, tensor in enumerate(wrapper.fp32_groups_flat_partition):
        offsets, offset = [], 0
        for parameter in wrapper.bf16_groups[index]:
            offsets.append((specs[parameter], offset))
            offset += parameter.numel()
        yield _equal_share(tensor, offsets, wrapper.real_dp_process_group[index])


def _equal_share(tensor: Tensor, offsets: list[tuple[ParameterSpec, int]], group: Any) -> Partition:
    """One of equal consecutive shares, one per rank, of a concatenation of parameters at these offsets."""
    segments = equal_segments(offsets, dist.get_rank(group=group), tensor.numel())
    return Partition(tensor, segments, **_group_fields(group), is_split=True)


def equal_segments(offsets: Sequence[tuple[ParameterSpec, int]], rank: int, numel: int) -> tuple[Segment, ...]:
    """Return the segments of a rank whose share of a concatenation of parameters has ``numel`` elements.

    Args:
        offsets: every parameter, and where it begins in the concatenation.
        rank: in the group; its share is the ``rank``-th.
        numel: of every share.
    """
    low, high = rank * numel, (rank + 1) * numel
    segments = []
    for spec, offset in offsets:
        start, stop = (min(max(edge - offset, 0), spec.numel) for edge in (low, high))
        segments.append(Segment(spec, start, stop, offset + start - low if start < stop else 0))
    return tuple(segments)


def _stage_3(zero: Any, specs: Specs) -> Iterator[Partition]:
    for index, tensor in enumerate(zero.fp32_partitioned_groups_flat):
        group = zero.sub_group_process_groups[index]
        rank, segments, offset = dist.get_rank(group=group), [], 0
        for parameter in zero.fp16_groups[index]:
            segments.append(stage_3_segment(specs[parameter], rank, parameter.partition_numel(), offset))
            offset += parameter.partition_numel()
        yield Partition(tensor, tuple(segments), **_group_fields(group), is_split=True)


def stage_3_segment(spec: ParameterSpec, rank: int, numel: int, offset: int) -> Segment:
    """Return what a rank holds of a parameter that ZeRO 3 cuts into shares of ``numel`` elements, the last shorter."""
    return Segment(spec, min(rank * numel, spec.numel), min((rank + 1) * numel, spec.numel), offset)


def _stage_0(optimizer: torch.optim.Optimizer, specs: Specs) -> Iterator[Partition]:
    for param_group in optimizer.param_groups:
        for parameter in param_group["params"]:
            yield whole(parameter, specs[parameter], **_group_fields(_replica_group(param_group)))


def _stage_0_master_copies(wrapper: Any, specs: Specs) -> Iterator[Partition]:
    for param_group, parameters, copies in zip(
        wrapper.optimizer.param_groups, wrapper.fp16_groups, wrapper.fp32_groups, strict=True
    ):
        for parameter, copy in zip(parameters, copies, strict=True):
            yield whole(copy, specs[parameter], **_group_fields(_replica_group(param_group)))


def frozen_parameters(specs: Specs) -> Iterator[Partition]:
    """Yield a partition for each parameter that no optimizer holds: the model's own tensor or, at stage 3, its shard.

    Args:
        specs: of all parameters of the model, after ``deepspeed.initialize``.
    """
    parameter: Any  # DeepSpeed's attributes
    for parameter, spec in specs.items():
        if parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_tensor"):
            group = parameter.ds_process_group
            own = stage_3_segment(spec, dist.get_rank(group=group), parameter.partition_numel(), 0)
            yield Partition(parameter.ds_tensor, (own,), **_group_fields(group), is_split=True)
        else:
            split = not getattr(parameter, "allreduce", True)
            group = _replica_group({"moe": split, "name": getattr(parameter, "group_name", None)})
            yield whole(parameter, spec, **_group_fields(group))


def _replica_group(param_group: dict[str, Any]) -> Any:
    """The ranks that hold the same parameters, all of them or, for experts, the expert-data-parallel group."""
    if param_group.get("moe"):
        return groups._get_expert_data_parallel_group(param_group["name"])
    return groups._get_data_parallel_group()


def _group_fields(group: Any) -> dict[str, Any]:
    return {
        "group": group,
        "group_size": dist.get_world_size(group=group),
        "group_rank": dist.get_rank(group=group),
        "device": torch.device(get_accelerator().current_device_name()),
    }


def check_cover(partitions: list[Partition], specs: Specs) -> None:
    """Raise RuntimeError unless all ranks together hold every element of the trainable parameters exactly once."""
    names = [segment.spec.name for partition in partitions for segment in partition.segments]
    trainable = [spec.name for parameter, spec in specs.items() if parameter.requires_grad and spec.numel]
    if sorted(names) != sorted(trainable):
        wrong = sorted(set(names) ^ set(trainable)) or names
        raise RuntimeError(f"the optimizer does not hold every trainable parameter once: {wrong}")
    for partition in partitions:
        if not _is_fake(partition.group):
            _check_ranks(partition)
        spans = sorted((segment.offset, segment.offset + segment.numel) for segment in partition.held())
        for (_, end), (start, _) in itertools.pairwise([*spans, (partition.tensor.numel(),) * 2]):
            if start < end:
                raise RuntimeError(
                    f"segments overlap at {start}-{end} of a partition of {partition.tensor.numel()} elements: {spans}"
                )


def _is_fake(group: Any) -> bool:
    """Whether a group's other ranks are not there, as in a dry run."""
    return torch.distributed.is_initialized() and torch.distributed.get_backend(group) == "fake"


def _check_ranks(partition: Partition) -> None:
    """Raise RuntimeError unless the segments of all ranks make up the parameters exactly."""
    own_S2 = [(segment.start, segment.stop) for segment in partition.segments]
    own = torch.tensor(own_S2, dtype=torch.int64, device=partition.device).view(-1, 2)
    ranks = [own]
    if partition.is_split:
        ranks = [torch.empty_like(own) for _ in range(partition.group_size)]
        dist.all_gather(ranks, own, group=partition.group)
    for segment, edges in _not_covered(partition.segments, torch.stack(ranks, dim=1).cpu()):
        raise RuntimeError(f"the ranks' segments do not make up {segment.spec.name} exactly: {edges}")


def _not_covered(segments: Sequence[Segment], edges_SG2: Tensor) -> Iterator[tuple[Segment, list[list[int]]]]:
    """Yield the parameters whose elements the ranks do not hold exactly once, with start and stop of each rank.

    Without a loop over the ranks: a model of 600 parameters has 300,000 segments on 512 of them.
    """
    numel_S = torch.tensor([segment.spec.numel for segment in segments], dtype=torch.int64)
    # An empty segment counts as one at the end, where it lies between no others.
    empty_SG = edges_SG2[..., 0] >= edges_SG2[..., 1]
    placed_SG2 = edges_SG2.where(~empty_SG[..., None], numel_S[:, None, None])
    starts_SG, order_SG = placed_SG2[..., 0].sort(dim=1)
    stops_SG = placed_SG2[..., 1].gather(1, order_SG)
    before_SG = torch.cat([torch.zeros_like(numel_S)[:, None], stops_SG[:, :-1]], dim=1)
    whole_S = (starts_SG == before_SG).all(dim=1) & (stops_SG[:, -1] == numel_S)
    for number in (~whole_S).nonzero().flatten().tolist():
        yield segments[number], edges_SG2[number].tolist()
