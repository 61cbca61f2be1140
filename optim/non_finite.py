"""Skips the optimizer step on a non-finite gradient where DeepSpeed does not."""

from typing import Any

import torch
import torch.distributed as dist
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer


@torch.no_grad()
def discard_non_finite(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    """Drop all gradients if the norm on any rank is infinite or NaN; a step pre-hook, one all-reduce of one number.

    As DeepSpeed's own wrappers do, ``optimizer.overflow`` then tells the engine to count a skipped step and to keep the
    learning rate.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    finite = torch.isfinite(get_total_norm(gradients)).float()
    if dist.is_initialized():
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    overflow = not finite.item()
    if overflow:
        optimizer.zero_grad(set_to_none=True)
    vars(optimizer)["overflow"] = overflow
