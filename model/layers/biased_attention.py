"""Attention with an additive bias that needs a gradient, on a CPU: torch has no fused kernel for it there.

``scaled_dot_product_attention`` falls back to a composition whose softmax takes care of rows of -inf, which
``attention_bias`` never makes, in four more passes over all logits.

Shape suffixes: B = sequences, Q = query positions, K = key positions, H = heads, D = d_kv.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def needs_bias_gradient(q_BHQD: Tensor, bias: Tensor | None) -> bool:
    """Return whether ``attend_with_bias`` is to be used."""
    wanted = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    return wanted and q_BHQD.device.type == "cpu" and not torch.compiler.is_compiling()


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHQD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor, bias: Tensor) -> Tensor:
        logits_BHQK = (q_BHQD @ k_BHKD.mT).add_(bias)
        probs_BHQK = logits_BHQK.softmax(-1)
        ctx.save_for_backward(q_BHQD, k_BHKD, v_BHKD, probs_BHQK)
        ctx.shape = bias.shape
        return probs_BHQK @ v_BHKD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHQD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q_BHQD, k_BHKD, v_BHKD, probs_BHQK = ctx.saved_tensors
        grad_v = probs_BHQK.mT @ grad_BHQD
        grad_probs = grad_BHQD @ v_BHKD.mT
        grad_logits = torch._softmax_backward_data(grad_probs, probs_BHQK, -1, probs_BHQK.dtype)
        return grad_logits @ k_BHKD, grad_logits.mT @ q_BHQD, grad_v, grad_logits.sum_to_size(ctx.shape)


def attend_with_bias(q_BHQD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor, bias: Tensor) -> Tensor:
    """Compute ``softmax(q k^T + bias) v``: ``[B, H, Q, D]``, in the dtype of the queries, computed in float32.

    Args:
        q_BHQD: queries, in float32 or lower precision.
        k_BHKD: keys.
        v_BHKD: values.
        bias: additive, broadcastable to ``[B, H, Q, K]``; finite.
    """
    if q_BHQD.dtype == torch.float64:
        return _Attention.apply(q_BHQD, k_BHKD, v_BHKD, bias)
    with torch.autocast("cpu", enabled=False):
        y_BHQD = _Attention.apply(q_BHQD.float(), k_BHKD.float(), v_BHKD.float(), bias.float())
    return y_BHQD.to(q_BHQD.dtype)
