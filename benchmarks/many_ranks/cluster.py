"""What each rank of a large cluster holds of a model, by DeepSpeed's rules, without the ranks.

The tensors are on the meta device unless another one is asked for, and so take no memory.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from model.config import StMoeConfig
from model.st_moe import StMoeForConditionalGeneration
from optim.adafactor import Adafactor
from optim.parameter import ParameterSpec
from optim.partition import Partition, Segment
from optim.zero_partitions import equal_segments, stage_3_segment
from training.checkpoint.store.layout import ParallelLayout
from training.engine.parameters import model_parameter_specs

# DeepSpeed pads what ZeRO 1 and 2 cut to a multiple of this and the ranks (nccl_start_alignment_factor).
ALIGNMENT = 2
STEPS = 1000.0  # updates that the fake optimizers have seen


@dataclass(frozen=True)
class Cluster:
    """A model on many ranks.

    Args:
        specs: of every parameter, all experts held.
        layout: its expert-parallel size, ranks and ZeRO stage, 1 or 3.
        device: of the ranks' tensors.
    """

    specs: tuple[ParameterSpec, ...]
    layout: ParallelLayout
    device: str = "meta"

    @classmethod
    def of(cls, config: StMoeConfig, layout: ParallelLayout) -> "Cluster":
        """Return the cluster of a model, which is made on the meta device."""
        with torch.device("meta"):
            model = StMoeForConditionalGeneration(config)
        return cls(tuple(model_parameter_specs(model).values()), layout)

    @property
    def numel(self) -> int:
        """Weights of the whole model."""
        return sum(spec.numel for spec in self.specs)

    def partitions(self, rank: int) -> list[Partition]:
        """Return what ZeRO gives a rank: one partition of dense parameters and one of experts, of zeros."""
        size, world_size, stage, _ = self.layout
        dense, experts = self.held(rank % size)
        groups = [(dense, world_size, rank), (experts, world_size // size, rank // size)]
        cut = _stage_3 if stage == 3 else _stage_1
        return [cut(specs, group_size, group_rank, self.device) for specs, group_size, group_rank in groups if specs]

    @functools.cache  # noqa: B019 - as many entries as an expert-parallel group has ranks
    def held(self, expert_rank: int) -> tuple[list[ParameterSpec], list[ParameterSpec]]:
        """Return the specs of dense parameters and of experts, as a rank of an expert-parallel group has them."""
        dense, experts = [], []
        for spec in self.specs:
            axis = spec.expert_axis
            if axis is None or not axis.split:
                dense.append(spec)
                continue
            each = axis.total // self.layout.expert_parallel_size
            held = range(expert_rank * each, (expert_rank + 1) * each)
            experts.append(replace(spec, expert_axis=axis._replace(held=held)))
        return dense, experts


def _stage_1(specs: list[ParameterSpec], group_size: int, group_rank: int, device: str) -> Partition:
    offsets, offset = [], 0
    for spec in specs:
        offsets.append((spec, offset))
        offset += spec.numel
    each = -(-offset // (ALIGNMENT * group_size)) * ALIGNMENT
    segments = equal_segments(offsets, group_rank, each)
    return _split(torch.zeros(each, device=device), segments, group_size, group_rank)


def _stage_3(specs: list[ParameterSpec], group_size: int, group_rank: int, device: str) -> Partition:
    segments, offset = [], 0
    for spec in specs:
        each = -(-spec.numel // group_size)
        segments.append(stage_3_segment(spec, group_rank, each, offset))
        offset += each
    return _split(torch.zeros(offset, device=device), tuple(segments), group_size, group_rank)


def _split(tensor: Tensor, segments: tuple[Segment, ...], group_size: int, group_rank: int) -> Partition:
    return Partition(tensor, segments, is_split=True, group_size=group_size, group_rank=group_rank)


def fake_optimizer(name: str, partitions: list[Partition]) -> torch.optim.Optimizer:
    """Return an optimizer of partitions, with the state that it has after an update, all zero."""
    tensors = [partition.tensor for partition in partitions]
    if name == "adafactor":
        optimizer = Adafactor(tensors, {})
        optimizer.bind(partitions)
        return optimizer
    adamw = torch.optim.AdamW(tensors)
    for tensor in tensors:
        moments: dict[str, Any] = {key: torch.zeros_like(tensor) for key in ("exp_avg", "exp_avg_sq")}
        adamw.state[tensor] = {"step": torch.tensor(STEPS)} | moments
    return adamw
