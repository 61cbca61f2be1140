"""Matrix products in a lower precision than their weights', as under autocast, with few launches and few copies.

Autocast casts every operand of every product by itself. Here the weights of a module are cast together, those with the
same input as one matrix, an input once for all its products, and gradients leave their products in the type of what
they are gradients of: they are rounded once, not to the lower precision and then back.

Shape suffixes: T = tokens, d = d_model, F = d_ff, N = columns of several products.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.layers.geglu import differentiate, hidden_of
from model.layers.precision import matmul_dtype


def is_cast(weight: Tensor) -> bool:
    """Return whether autocast casts ``weight`` for a matrix product; False where torch compiles.

    The compiler fuses casts by itself, and knows more than this module.
    """
    return not torch.compiler.is_compiling() and matmul_dtype(weight) != weight.dtype


def cast_together(groups: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> list[Tensor]:
    """Cast matrices ``[..., n, d]`` in one launch; those of a group become one, ``[..., sum of n, d]``."""
    joined, parts, sources = [], [], []
    for group in groups:
        rows = [weight.shape[-2] for weight in group]
        shape = (*group[0].shape[:-2], sum(rows), group[0].shape[-1])
        joined.append(torch.empty(shape, dtype=dtype, device=group[0].device))
        parts += joined[-1].split(rows, dim=-2)
        sources += [weight.detach() for weight in group]
    torch._foreach_copy_(parts, sources)
    return joined


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply matrices, or batches of matrices, into ``dtype``; on a GPU without rounding to that of the factors."""
    if left.dtype == dtype:
        return left @ right
    if left.is_cuda:
        multiply = torch.mm if left.dim() == 2 else torch.bmm
        return multiply(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, cast_Nd: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        low_Td = low.reshape(-1, low.shape[-1])
        ctx.save_for_backward(low_Td, cast_Nd)
        ctx.shape, ctx.dtypes, ctx.rows = x.shape, (x.dtype, weights[0].dtype), [len(w) for w in weights]
        return (low_Td @ cast_Nd.mT).view(*x.shape[:-1], -1).split(ctx.rows, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        low_Td, cast_Nd = ctx.saved_tensors
        grad_TN = (grads[0] if len(grads) == 1 else torch.cat(grads, dim=-1)).reshape(len(low_Td), -1)
        of_input, of_weights = ctx.dtypes
        grad_x = product(grad_TN, cast_Nd, of_input).view(ctx.shape) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[3:]):  # frozen
            return grad_x, None, None, *(None for _ in ctx.rows)
        return grad_x, None, None, *product(grad_TN.mT, low_Td, of_weights).split(ctx.rows)


def project(x: Tensor, low: Tensor, cast_Nd: Tensor, modules: Sequence[nn.Linear]) -> tuple[Tensor, ...]:
    """Apply linear maps to one input by one product: ``[..., d]`` → one ``[..., n]`` for each, in the lower precision.

    Args:
        x: the input in full precision, which gets the gradient.
        low: the input in the lower precision, whose gradient is not asked for.
        cast_Nd: their weights, from ``cast_together``.
        modules: linear maps without bias.
    """
    return _Project.apply(x, low.detach(), cast_Nd, *(module.weight for module in modules))


Matrices = tuple[Tensor, Tensor, Tensor]


class _Geglu(torch.autograd.Function):
    """Of one feed-forward, with matrices, or of several, with a batch of matrices each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, keep: bool, w_in: Tensor, w_gate: Tensor, w_out: Tensor) -> Tensor:
        casts = cast_together(((w_in, w_gate), (w_out,)), low.dtype)
        both = low @ casts[0].mT
        first, second = both.chunk(2, dim=-1)
        hidden = hidden_of(first, second)
        ctx.save_for_backward(low, both, hidden, *(casts if keep else (w_in, w_gate, w_out)))
        ctx.keep, ctx.dtypes = keep, (x.dtype, w_in.dtype)
        return hidden @ casts[1].mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        low, both, hidden, *matrices = ctx.saved_tensors
        if not ctx.keep:
            w_in, w_gate, w_out = matrices
            matrices = cast_together(((w_in, w_gate), (w_out,)), low.dtype)
        cast_both, cast_out = matrices
        of_input, of_weights = ctx.dtypes
        first, second = both.chunk(2, dim=-1)
        grad_both = torch.empty_like(both)
        grad_first, grad_second = grad_both.chunk(2, dim=-1)
        differentiate(first, second, grad @ cast_out, grad_first, grad_second)
        grad_x = product(grad_both, cast_both, of_input) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[3:]):  # frozen
            return grad_x, None, None, None, None, None
        grad_w_out = product(grad.mT, hidden, of_weights)
        grad_w_both = product(grad_both.mT, low, of_weights)
        return grad_x, None, None, *grad_w_both.chunk(2, dim=-2), grad_w_out


def geglu(x: Tensor, low: Tensor, matrices: Matrices, *, keep: bool) -> Tensor:
    """Compute ``(gelu(x W_in) * (x W_gate)) W_out`` in the lower precision: ``[T, d]`` → ``[T, d]``, or ``[E, T, d]``.

    Args:
        x: the input in full precision, which gets the gradient.
        low: the input in the lower precision, whose gradient is not asked for.
        matrices: ``W_in [..., F, d]``, ``W_gate [..., F, d]`` and ``W_out [..., d, F]``.
        keep: whether to keep the cast matrices for the backward pass, or to cast them again there.
    """
    return _Geglu.apply(x, low.detach(), keep, *matrices)
