"""Tokens to expert rows and back, by gathers in both directions: neither forward nor backward scatters activations.

Shape suffixes: N = choices, T = tokens, R = rows of the buffer (E * G * C), d = d_model.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def tokens_of_rows(slot_NT: Tensor, rows: int) -> Tensor:
    """The inverse of ``slot_NT``: for each row of the buffer its token, int64 ``[R]``; T for an empty row."""
    choices, tokens = slot_NT.shape
    token_R = torch.full((rows + 1,), tokens, dtype=torch.int64, device=slot_NT.device)
    token_T = torch.arange(tokens, device=slot_NT.device)
    token_R.scatter_(0, slot_NT.reshape(-1), token_T.repeat(choices))
    return token_R[:rows]


def _take_or_zero(source: Tensor, index: Tensor) -> Tensor:
    """Rows of ``source [n, d]``; zero where ``index`` is n."""
    if not len(source):  # dropless routing of padding alone
        return source.new_zeros(len(index), source.shape[1])
    nothing = index == len(source)
    taken = source.index_select(0, index.clamp(max=len(source) - 1))
    return taken.masked_fill_(nothing.unsqueeze(-1), 0)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_Td: Tensor, slot_NT: Tensor, token_R: Tensor) -> Tensor:
        ctx.save_for_backward(slot_NT)
        return _take_or_zero(x_Td, token_R)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_Rd: Tensor) -> tuple[Tensor, None, None]:
        (slot_NT,) = ctx.saved_tensors
        grad_Td = _take_or_zero(grad_Rd, slot_NT[0])
        for slot_T in slot_NT[1:]:
            grad_Td += _take_or_zero(grad_Rd, slot_T)
        return grad_Td, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_Rd: Tensor, gate_NT: Tensor, slot_NT: Tensor, token_R: Tensor) -> Tensor:
        ctx.save_for_backward(rows_Rd, gate_NT, slot_NT, token_R)
        weight_NT = gate_NT.to(rows_Rd.dtype)
        y_Td = _take_or_zero(rows_Rd, slot_NT[0]).mul_(weight_NT[0].unsqueeze(-1))
        for weight_T, slot_T in zip(weight_NT[1:], slot_NT[1:], strict=True):
            y_Td.addcmul_(_take_or_zero(rows_Rd, slot_T), weight_T.unsqueeze(-1))
        return y_Td

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_Td: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows_Rd, gate_NT, slot_NT, token_R = ctx.saved_tensors
        weight_R = torch.zeros(len(rows_Rd) + 1, dtype=rows_Rd.dtype, device=rows_Rd.device)
        weight_R.scatter_(0, slot_NT.reshape(-1), gate_NT.to(rows_Rd.dtype).reshape(-1))
        grad_Rd = _take_or_zero(grad_Td, token_R).mul_(weight_R[:-1].unsqueeze(-1))
        grad_gate_NT = torch.stack([(_take_or_zero(rows_Rd, slot_T) * grad_Td).sum(-1) for slot_T in slot_NT])
        return grad_Rd, grad_gate_NT.to(gate_NT.dtype), None, None


def dispatch(x_Td: Tensor, slot_NT: Tensor, token_R: Tensor) -> Tensor:
    """Copy tokens to their rows: ``[T, d]`` → ``[R, d]``, empty rows zero.

    Args:
        x_Td: activations.
        slot_NT: row of each choice, int64; R where the choice has none.
        token_R: ``tokens_of_rows(slot_NT, R)``.
    """
    return _Dispatch.apply(x_Td, slot_NT, token_R)


def combine(rows_Rd: Tensor, gate_NT: Tensor, slot_NT: Tensor, token_R: Tensor) -> Tensor:
    """Weighted sum of each token's rows: ``[R, d]`` → ``[T, d]`` in the dtype of ``rows_Rd``.

    A token without any row gets exactly 0, and gives no gradient.
    """
    return _Combine.apply(rows_Rd, gate_NT, slot_NT, token_R)
