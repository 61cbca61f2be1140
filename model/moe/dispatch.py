"""Copies tokens into the experts' buffer and combines its rows into tokens.

Forward and backward pass gather in both directions; neither scatters activations. On a GPU each is one kernel.

Shape suffixes: N = choices of a token, T = tokens, Q = N * T choices of all tokens, R = rows of the buffer (capacity
slots of all experts), b = rows or tokens of a block, d = d_model.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.kernels.available import kernels, usable
from model.layers.values import has_values

CPU_BLOCK = 512  # rows: with d_model 512, 1 MB in float32


def tokens_of_rows(slot_NT: Tensor, rows: int) -> Tensor:
    """Invert ``slot_NT``: return the token of each row of the buffer, int64 ``[R]``; T for an empty row.

    Args:
        slot_NT: row of each choice, int64; ``rows`` where the choice has none.
        rows: R.
    """
    choices, tokens = slot_NT.shape
    token_R = torch.full((rows + 1,), tokens, dtype=torch.int64, device=slot_NT.device)
    token_T = torch.arange(tokens, device=slot_NT.device)
    token_R.scatter_(0, slot_NT.reshape(-1), token_T.repeat(choices))
    return token_R[:rows]


def _take(source: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """Gather rows of ``source``; where ``index`` is its length, any row, which the caller multiplies by 0."""
    if not len(source):  # dropless routing of padding alone
        return source.new_zeros(len(index), source.shape[1]) if out is None else out.zero_()
    return torch.index_select(source, 0, index.clamp(max=len(source) - 1), out=out)


def _take_or_zero(source: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """Gather rows of ``source``; zero where ``index`` is its length."""
    taken, empty = _take(source, index, out), index == len(source)
    if taken.is_cuda or not has_values(taken):
        return taken.masked_fill_(empty.unsqueeze(-1), 0)
    return taken.index_fill_(0, empty.nonzero().squeeze(-1), 0)  # writes only the empty rows


def _blocks(rows: int, device: torch.device) -> Iterator[slice]:
    """Yield all rows at once; on a CPU in blocks that stay in the cache from one operation to the next."""
    size = CPU_BLOCK if device.type == "cpu" else max(rows, 1)
    return (slice(start, start + size) for start in range(0, rows, size))


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_Td: Tensor, slot_NT: Tensor, token_R: Tensor) -> Tensor:
        ctx.save_for_backward(slot_NT)
        if usable(x_Td):
            return kernels("rows").gather(x_Td, token_R)
        rows_Rd = x_Td.new_empty(len(token_R), x_Td.shape[1])
        for block in _blocks(len(token_R), x_Td.device):
            _take_or_zero(x_Td, token_R[block], out=rows_Rd[block])
        return rows_Rd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_Rd: Tensor) -> tuple[Tensor, None, None]:
        (slot_NT,) = ctx.saved_tensors
        if usable(grad_Rd):
            return kernels("rows").weighted_sum(grad_Rd, None, slot_NT), None, None
        grad_Td = grad_Rd.new_empty(slot_NT.shape[1], grad_Rd.shape[1])
        for block in _blocks(len(grad_Td), grad_Rd.device):
            grad_bd = _take_or_zero(grad_Rd, slot_NT[0, block], out=grad_Td[block])
            for slot_T in slot_NT[1:]:
                grad_bd += _take_or_zero(grad_Rd, slot_T[block])
        return grad_Td, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_Rd: Tensor, gate_NT: Tensor, slot_NT: Tensor, token_R: Tensor) -> Tensor:
        ctx.save_for_backward(rows_Rd, gate_NT, slot_NT, token_R)
        if usable(rows_Rd):
            return kernels("rows").weighted_sum(rows_Rd, gate_NT, slot_NT)
        weight_NT1 = gate_NT.masked_fill(slot_NT == len(rows_Rd), 0).to(rows_Rd.dtype).unsqueeze(-1)
        y_Td = rows_Rd.new_empty(slot_NT.shape[1], rows_Rd.shape[1])
        for block in _blocks(len(y_Td), rows_Rd.device):
            y_bd = _take(rows_Rd, slot_NT[0, block], out=y_Td[block]).mul_(weight_NT1[0, block])
            for weight_T1, slot_T in zip(weight_NT1[1:], slot_NT[1:], strict=True):
                y_bd.addcmul_(_take(rows_Rd, slot_T[block]), weight_T1[block])
        return y_Td

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_Td: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows_Rd, gate_NT, slot_NT, token_R = ctx.saved_tensors
        if usable(grad_Td):
            return *kernels("rows").weighted_sum_backward(rows_Rd, gate_NT, slot_NT, token_R, grad_Td), None, None
        slot_Q, rows = slot_NT.reshape(-1), len(rows_Rd)
        weight_R = rows_Rd.new_zeros(rows + 1).scatter_(0, slot_Q, gate_NT.to(rows_Rd.dtype).reshape(-1))
        grad_gate_R = gate_NT.new_zeros(rows + 1)  # the last element is for choices without a row
        grad_Rd = torch.empty_like(rows_Rd)
        for block in _blocks(rows, rows_Rd.device):
            grad_bd = _take(grad_Td, token_R[block], out=grad_Rd[block])
            grad_gate_R[:rows][block] = (rows_Rd[block] * grad_bd).sum(-1)
            grad_bd.mul_(weight_R[:rows][block].unsqueeze(-1))
        return grad_Rd, grad_gate_R[slot_Q].view(gate_NT.shape), None, None


def dispatch(x_Td: Tensor, slot_NT: Tensor, token_R: Tensor) -> Tensor:
    """Copy tokens to their rows of the buffer: ``[T, d]`` → ``[R, d]``, same dtype; empty rows are zero.

    Args:
        x_Td: activations.
        slot_NT: row of each choice, int64; R where the choice has none.
        token_R: ``tokens_of_rows(slot_NT, R)``.
    """
    return _Dispatch.apply(x_Td, slot_NT, token_R)


def combine(rows_Rd: Tensor, gate_NT: Tensor, slot_NT: Tensor, token_R: Tensor) -> Tensor:
    """Sum each token's rows with its gates as weights: ``[R, d]`` → ``[T, d]``, in the dtype of ``rows_Rd``.

    A token without a row gets exactly 0 and contributes no gradient.

    Args:
        rows_Rd: outputs of the experts.
        gate_NT: weight of each choice, float32.
        slot_NT: row of each choice, int64; R where the choice has none.
        token_R: ``tokens_of_rows(slot_NT, R)``.
    """
    return _Combine.apply(rows_Rd, gate_NT, slot_NT, token_R)
