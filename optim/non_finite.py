"""Leaves out an update whose gradient is not finite, where DeepSpeed does not."""

from typing import Any

import torch
import torch.distributed as dist
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer


@torch.no_grad()
def discard_non_finite(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    """A step pre-hook: drops all gradients if any rank's norm is infinite or NaN; one all-reduce of one number.

    ``optimizer.overflow`` then tells DeepSpeed's engine, as its own wrappers do, to count a skipped step and to leave
    the learning rate where it is.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    finite = torch.isfinite(get_total_norm(gradients)).float()
    if dist.is_initialized():
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    overflow = not finite.item()
    if overflow:
        optimizer.zero_grad(set_to_none=True)
    vars(optimizer)["overflow"] = overflow
