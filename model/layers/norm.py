"""RMSNorm, with or without its scale."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
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
        if self.scale is not None and x.dtype == self.scale.dtype == torch.float32 and _has_no_kernel(x):
            return _Norm.apply(x, self.scale, self.epsilon)
        return functional.rms_norm(x, (self.width,), self.scale, self.epsilon)


def _has_no_kernel(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


class _Norm(torch.autograd.Function):
    """On a CPU torch composes the norm of six operations and differentiates each; this is a third faster.

    Shape suffixes: T = tokens, d = width.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale_d: Tensor, epsilon: float) -> Tensor:
        x_Td = x.reshape(-1, x.shape[-1])
        inverse_T1 = x_Td.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x_Td, scale_d, inverse_T1)
        return (x_Td * inverse_T1).mul_(scale_d).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_Td, scale_d, inverse_T1 = ctx.saved_tensors
        grad_Td = grad.reshape(x_Td.shape)
        normed_Td = x_Td * inverse_T1
        grad_scale_d = (grad_Td * normed_Td).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_scale_d, None
        grad_normed_Td = grad_Td * scale_d
        mean_T1 = torch.linalg.vecdot(grad_normed_Td, normed_Td).unsqueeze(-1) / x_Td.shape[1]
        grad_x_Td = grad_normed_Td.sub_(normed_Td.mul_(mean_T1)).mul_(inverse_T1)
        return grad_x_Td.view(grad.shape), grad_scale_d, None
