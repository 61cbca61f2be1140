"""What ZeRO's wrappers do at every step and ZeRO stage 0 does not, or does wrongly when experts are spread over ranks.

DeepSpeed 0.19.8 has no gradient norm at stage 0 with float32 weights, leaves the experts out of it with bfloat16
weights, and clips each rank by the norm of its own experts (clip_grad_norm_ of deepspeed/runtime/utils.py).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from optim.partition import Partition


class StageZero:
    """A step pre-hook: global gradient norm, no step on a gradient that is not finite, clipping.

    Args:
        optimizer: ``engine.optimizer``, from which DeepSpeed reads the norm and whether the step was skipped.
        partitions: whole parameters, or their float32 copies, and how many ranks hold each.
        clipping: largest norm; 0: no clipping. DeepSpeed must not clip.
    """

    def __init__(self, optimizer: Any, partitions: Sequence[Partition], clipping: float):
        self.optimizer, self.partitions, self.clipping = optimizer, partitions, clipping

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        """Make ready the gradients of the torch optimizer that is about to step; one all-reduce of one number."""
        norm = global_norm(self.partitions)
        finite = bool(torch.isfinite(norm))
        vars(self.optimizer).update(overflow=not finite, _global_grad_norm=norm.item())
        if not finite:
            optimizer.zero_grad(set_to_none=True)
        elif self.clipping and norm > self.clipping:
            gradients = [p.tensor.grad for p in self.partitions if p.tensor.grad is not None]
            torch._foreach_mul_(gradients, self.clipping / (norm.item() + 1e-6))  # as torch and DeepSpeed clip


def global_norm(partitions: Sequence[Partition]) -> Tensor:
    """Return the norm of all gradients over all ranks, float64 ``[]``: each expert and each dense parameter once."""
    gradients = [(p.tensor.grad, p.group_size) for p in partitions if p.tensor.grad is not None]
    norms = torch._foreach_norm([gradient for gradient, _ in gradients])
    # Every one of the group's ranks has the same gradient and adds its part of the square.
    total = sum(norm.double().square() / ranks for norm, (_, ranks) in zip(norms, gradients, strict=True))
    total = torch.as_tensor(total, dtype=torch.float64, device=gradients[0][0].device)
    if dist.is_initialized():
        dist.all_reduce(total)
    return total.sqrt()
