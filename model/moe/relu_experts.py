"""ReLU of several experts as one autograd function: a loop on a CPU, grouped matrix products on a GPU.

As in ``grouped_geglu``, every gradient is written once, in its final place. The rows' hidden activation is kept: what
ReLU's gradient needs is in it.

Shape suffixes: E = experts, R = rows of all of them, r = rows of one, d = d_model, F = d_ff, H = F / 2.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.functional import grouped_mm

from model.layers.dropout import drop, split
from model.layers.products import cast_together
from model.moe.grouped_geglu import ReusedMemory, by_expert, grouped, new_gradients, write_weight_gradients


class _PerExpert(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_Rd: Tensor,
        w1_EHd: Tensor,
        w2_EdF: Tensor,
        w3_EHd: Tensor,
        counts: list[int],
        memory: tuple[ReusedMemory, ...],
        dropout_RF: Tensor | None,
    ) -> Tensor:
        y_Rd = torch.empty_like(rows_Rd)
        hidden_RF = rows_Rd.new_empty(len(rows_Rd), w2_EdF.shape[2])
        parts = (split(t, counts) for t in (rows_Rd, y_Rd, hidden_RF, dropout_RF))
        stacks = (w1_EHd.unbind(), w2_EdF.unbind(), w3_EHd.unbind())
        for rows_rd, y_rd, hidden_rF, dropout_rF, *weights in zip(*parts, *stacks, strict=True):
            w1_Hd, w2_dF, w3_Hd = (w.to(rows_Rd.dtype) for w in weights)
            for half_rH, w_Hd in zip(hidden_rF.chunk(2, dim=-1), (w1_Hd, w3_Hd), strict=True):
                torch.mm(rows_rd, w_Hd.mT, out=half_rH)
            torch.mm(drop(hidden_rF.relu_(), dropout_rF), w2_dF.mT, out=y_rd)
        ctx.save_for_backward(rows_Rd, hidden_RF, dropout_RF, w1_EHd, w2_EdF, w3_EHd)
        ctx.counts, ctx.memory = counts, memory
        return y_Rd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_Rd: Tensor) -> tuple[Tensor | None, ...]:
        rows_Rd, hidden_RF, dropout_RF, *stacks = ctx.saved_tensors
        grads = new_gradients(ctx.memory, stacks, ctx.needs_input_grad[1:4])
        grad_rows_Rd = torch.empty_like(rows_Rd)
        scratch = rows_Rd.new_empty(max(ctx.counts), hidden_RF.shape[1])  # one for all experts: it stays in the cache
        parts = (split(t, ctx.counts) for t in (rows_Rd, grad_y_Rd, grad_rows_Rd, hidden_RF, dropout_RF))
        experts = zip(*parts, *(w.unbind() for w in stacks), *by_expert(grads, len(stacks[0])), strict=True)
        for rows_rd, grad_y_rd, grad_rows_rd, hidden_rF, dropout_rF, w1, w2, w3, *grad_w in experts:
            w1_Hd, w2_dF, w3_Hd = (w.to(rows_Rd.dtype) for w in (w1, w2, w3))
            grad_hidden_rF = torch.mm(grad_y_rd, w2_dF, out=scratch[: len(rows_rd)])
            _through_relu(drop(grad_hidden_rF, dropout_rF), hidden_rF)
            first_rH, second_rH = grad_hidden_rF.chunk(2, dim=-1)
            pairs = ((first_rH, rows_rd), (grad_y_rd, hidden_rF), (second_rH, rows_rd))
            write_weight_gradients(grad_w, pairs)
            torch.mm(first_rH, w1_Hd, out=grad_rows_rd).addmm_(second_rH, w3_Hd)
        return grad_rows_Rd, *grads, None, None, None


class _Grouped(torch.autograd.Function):
    """The halves of W_in are joined to one matrix: two products in the forward and four in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_Rd: Tensor,
        w1_EHd: Tensor,
        w2_EdF: Tensor,
        w3_EHd: Tensor,
        ends_E: Tensor,
        keep: bool,
        dropout_RF: Tensor | None,
    ) -> Tensor:
        stacks = (w1_EHd, w2_EdF, w3_EHd)
        w_in_EFd, w_out_EdF = _matrices(stacks, rows_Rd.dtype)
        hidden_RF = drop(grouped_mm(rows_Rd, w_in_EFd.mT, offs=ends_E).relu_(), dropout_RF)
        ctx.save_for_backward(rows_Rd, ends_E, hidden_RF, dropout_RF, *((w_in_EFd, w_out_EdF) if keep else stacks))
        ctx.kept, ctx.dtype = keep, w1_EHd.dtype
        return grouped_mm(hidden_RF, w_out_EdF.mT, offs=ends_E)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_Rd: Tensor) -> tuple[Tensor | None, ...]:
        rows_Rd, ends_E, hidden_RF, dropout_RF, *matrices = ctx.saved_tensors
        w_in_EFd, w_out_EdF = matrices if ctx.kept else _matrices(tuple(matrices), rows_Rd.dtype)
        grad_y_Rd = grad_y_Rd.contiguous()
        grad_hidden_RF = drop(grouped_mm(grad_y_Rd, w_out_EdF, offs=ends_E), dropout_RF)
        _through_relu(grad_hidden_RF, hidden_RF)
        of_weights: list[Tensor | None] = [None, None, None]
        if any(ctx.needs_input_grad[1:4]):
            grad_w2 = grouped_mm(grad_y_Rd.mT, hidden_RF, offs=ends_E)
            grad_w1, grad_w3 = grouped_mm(grad_hidden_RF.mT, rows_Rd, offs=ends_E).chunk(2, dim=1)
            of_weights = [grad.to(ctx.dtype) for grad in (grad_w1, grad_w2, grad_w3)]
        grad_rows_Rd = grouped_mm(grad_hidden_RF, w_in_EFd, offs=ends_E)
        return grad_rows_Rd, *of_weights, None, None, None


def _through_relu(grad_rF: Tensor, hidden_rF: Tensor) -> None:
    """Differentiate ReLU in place, given its output."""
    torch.ops.aten.threshold_backward.grad_input(grad_rF, hidden_rF, 0, grad_input=grad_rF)


def _matrices(stacks: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """Return W_in ``[E, F, d]`` and W_out in ``dtype``."""
    w1_EHd, w2_EdF, w3_EHd = stacks
    if w2_EdF.dtype == dtype:
        return [*cast_together(((w1_EHd, w3_EHd),), dtype), w2_EdF]
    return cast_together(((w1_EHd, w3_EHd), (w2_EdF,)), dtype)


def relu_grouped(
    rows_Rd: Tensor,
    counts_E: Tensor | None,
    w1_EHd: Tensor,
    w2_EdF: Tensor,
    w3_EHd: Tensor,
    *,
    keep: bool = True,
    dropout_RF: Tensor | None = None,
) -> Tensor:
    """Compute ``Experts.forward`` with grouped products; arguments as of ``geglu_grouped``."""
    return grouped(
        lambda rows_Rd, ends_E: _Grouped.apply(rows_Rd, w1_EHd, w2_EdF, w3_EHd, ends_E, keep, dropout_RF),
        rows_Rd,
        counts_E,
        len(w2_EdF),
    )


def relu_per_expert(
    rows_Rd: Tensor,
    counts: list[int],
    w1_EHd: Tensor,
    w2_EdF: Tensor,
    w3_EHd: Tensor,
    memory: tuple[ReusedMemory, ...],
    dropout_RF: Tensor | None = None,
) -> Tensor:
    """Compute ``Experts.forward`` one expert at a time; arguments as of ``geglu_per_expert``."""
    total = sum(counts)
    dropout_RF = None if dropout_RF is None else dropout_RF[:total]
    y_Rd = _PerExpert.apply(rows_Rd[:total], w1_EHd, w2_EdF, w3_EHd, counts, memory, dropout_RF)
    return y_Rd if total == len(rows_Rd) else functional.pad(y_Rd, (0, 0, 0, len(rows_Rd) - total))
