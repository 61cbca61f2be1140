"""What this rank's optimizer holds, in ranges that mean the same at every parallel layout.

A flat index counts the elements of the whole parameter, all experts included, in row-major order.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from optim.slices import ParameterSpec
from optim.zero_partitions import read_layout
from parallel.layer import ExpertPlace, expert_place


@dataclass(frozen=True)
class Range:
    """Elements ``[start, stop)`` of a parameter, at ``offset`` of ``owner``, which the torch optimizer steps."""

    name: str
    shape: tuple[int, ...]  # of the whole parameter
    expert: bool  # the first axis counts experts, and is spread over ranks
    start: int
    stop: int
    owner: Tensor  # float32 master weights, of any shape
    offset: int
    replica: int  # this rank among those that hold the same elements
    replicas: int

    def of(self, tensor: Tensor) -> Tensor:
        """This range of ``tensor``, which has the shape of ``owner``: a 1-D view."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.stop - self.start]

    def share(self) -> "Range":
        """What this rank writes of it, so that all ranks together write every element once."""
        each = -(-(self.stop - self.start) // self.replicas)
        start = min(self.start + each * self.replica, self.stop)
        stop = min(start + each, self.stop)
        return replace(self, start=start, stop=stop, offset=self.offset + start - self.start, replica=0, replicas=1)


def engine_ranges(engine: Any) -> list[Range]:
    """All that this rank holds, without empty ranges; collective.

    Raises:
        ValueError: a parameter is frozen, so no optimizer holds it.
    """
    specs, places = {}, {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            raise ValueError(f"parameter {name} is frozen: checkpoints hold only what the optimizer trains")
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO 3 leaves no shape of its own
        specs[parameter] = ParameterSpec(name, shape)
        places[name] = expert_place(parameter)
    ranges = []
    for shard in read_layout(engine.optimizer, specs):
        replica, replicas = (0, 1) if shard.partitioned else (shard.rank, shard.replicas)
        for part in shard.slices:
            name, shape = part.spec.name, part.spec.shape
            place = places[name] or ExpertPlace(first=0, total=shape[0])
            shift = place.first * (part.spec.numel // shape[0])
            if part.start < part.stop:
                ranges.append(
                    Range(
                        name=name,
                        shape=(place.total, *shape[1:]),
                        expert=places[name] is not None,
                        start=part.start + shift,
                        stop=part.stop + shift,
                        owner=shard.tensor,
                        offset=part.offset,
                        replica=replica,
                        replicas=replicas,
                    )
                )
    return ranges


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
    elif hasattr(zero, "fp32_groups"):  # bf16 weights with master copies
        for low, master in zip(zero.fp16_groups, zero.fp32_groups, strict=True):
            torch._foreach_copy_(low, master)
