"""RMSNorm, with or without its scale."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.Module):
    """Root-mean-square normalization without mean or bias (Zhang & Sennrich 2019), as in T5.

    Args:
        width: size of the last axis.
        epsilon: added to the mean square.
        scale: whether to multiply by a learned vector (initialized to 1); the stability study switches it off.
    """

    def __init__(self, width: int, epsilon: float, scale: bool = True):
        super().__init__()
        self.width, self.epsilon = width, epsilon
        self.scale = nn.Parameter(torch.empty(width)) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x [..., width]``; the mean square is taken in float32, the result has the dtype of ``x``."""
        return functional.rms_norm(x, (self.width,), self.scale, self.epsilon)
