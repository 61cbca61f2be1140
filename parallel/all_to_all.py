"""The exchange of expert rows between ranks, differentiable.

Shape suffixes: W = ranks of the expert-parallel group, E = experts of the layer, L = E / W experts of one rank,
R = rows per expert and rank, d = d_model.
"""

from typing import Any

import deepspeed.comm as dist
import torch
from torch import Tensor


class _AllToAll(torch.autograd.Function):
    """Equal chunks of the first axis to every rank; its own adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _exchange(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _exchange(grad, ctx.group), None


def _exchange(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    received = torch.empty_like(x, memory_format=torch.contiguous_format)
    dist.all_to_all_single(received, x.contiguous(), group=group)
    return received


def rows_to_experts(rows_ERd: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All experts' rows of this rank → this rank's experts' rows of all ranks: ``[E, R, d]`` → ``[L, W * R, d]``."""
    world = dist.get_world_size(group=group)
    received = _AllToAll.apply(rows_ERd, group)
    return received.unflatten(0, (world, -1)).transpose(0, 1).flatten(1, 2)


def rows_from_experts(rows_LXd: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The inverse of ``rows_to_experts``: ``[L, W * R, d]`` → ``[E, R, d]``."""
    world = dist.get_world_size(group=group)
    return _AllToAll.apply(rows_LXd.unflatten(1, (world, -1)).transpose(0, 1).flatten(0, 1), group)
