"""GEGLU of several experts as one autograd function: a loop on a CPU, grouped matrix products on a GPU.

Autograd would keep four activations of width d_ff per row. These functions keep the products with W_in and W_gate (on a
CPU also the GELU, which is slow there) and write every gradient once, in its final place.

Shape suffixes: E = experts, R = rows of all of them, r = rows of one, d = d_model, F = d_ff.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.functional import grouped_mm

GROUPED_ALIGNMENT = 8  # bf16 elements in 16 bytes, to which grouped_mm aligns rows


class ReusedMemory:
    """Memory for a tensor that every step allocates; reused once the previous tensor is freed.

    The C library maps blocks of more than 32 MB again at every allocation: for the weight gradients of 64 experts of
    512 x 1408 this costs 0.2 s of page faults, a third of their forward and backward pass on two cores.
    """

    def __init__(self) -> None:
        self._storage: torch.UntypedStorage | None = None

    def empty_like(self, tensor: Tensor) -> Tensor:
        """Return an uninitialized contiguous tensor of the shape, dtype and device of ``tensor``."""
        storage, size = self._storage, tensor.numel() * tensor.element_size()
        fits = storage is not None and storage.nbytes() == size and storage.device == tensor.device
        if storage is None or not fits or torch._C._storage_Use_Count(storage._cdata) > 1:
            storage = self._storage = torch.UntypedStorage(size, device=tensor.device)
        shape = tensor.shape
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage, 0, shape, strides)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()  # a copy starts without memory


def _gelu(first: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.gelu.out(first, approximate="tanh", out=out)


def _geglu_backward(
    first: Tensor, second: Tensor, gate: Tensor, grad_hidden: Tensor, hidden: Tensor, grad_second: Tensor
) -> Tensor:
    """Return the gradient with respect to ``first``; it overwrites ``grad_hidden``.

    Args:
        first: product with W_in.
        second: product with W_gate.
        gate: ``gelu(first)``.
        grad_hidden: gradient with respect to ``gate * second``.
        hidden: output, ``gate * second``.
        grad_second: output, the gradient with respect to ``second``; may share the memory of ``gate``.
    """
    torch.mul(gate, second, out=hidden)
    torch.mul(gate, grad_hidden, out=grad_second)
    grad_hidden.mul_(second)
    return torch.ops.aten.gelu_backward.grad_input(grad_hidden, first, approximate="tanh", grad_input=grad_hidden)


class _PerExpert(torch.autograd.Function):
    """Loop over the experts, so that an expert's activations stay in the cache from one product to the next."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_Rd: Tensor,
        w1_EFd: Tensor,
        w2_EdF: Tensor,
        w3_EFd: Tensor,
        counts: list[int],
        memory: tuple[ReusedMemory, ...],
        differentiable: bool,
    ) -> Tensor:
        y_Rd = torch.empty_like(rows_Rd)
        scratch = rows_Rd.new_empty(max(counts), w1_EFd.shape[1])  # one for all experts: it stays in the cache
        kept: list[Tensor] = []
        parts = (rows_Rd.split(counts), y_Rd.split(counts), w1_EFd.unbind(), w2_EdF.unbind(), w3_EFd.unbind())
        for rows_rd, y_rd, *weights in zip(*parts, strict=True):
            w1_Fd, w2_dF, w3_Fd = (w.to(rows_Rd.dtype) for w in weights)
            first_rF, second_rF = rows_rd @ w1_Fd.mT, rows_rd @ w3_Fd.mT
            gate_rF = _gelu(first_rF, out=torch.empty_like(first_rF))
            hidden_rF = torch.mul(gate_rF, second_rF, out=scratch[: len(rows_rd)])
            torch.mm(hidden_rF, w2_dF.mT, out=y_rd)
            if differentiable:
                kept += first_rF, second_rF, gate_rF
        ctx.save_for_backward(rows_Rd, w1_EFd, w2_EdF, w3_EFd, *kept)
        ctx.counts, ctx.memory = counts, memory
        return y_Rd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_Rd: Tensor) -> tuple[Tensor | None, ...]:
        rows_Rd, w1_EFd, w2_EdF, w3_EFd, *kept = ctx.saved_tensors
        stacks = (w1_EFd, w2_EdF, w3_EFd)
        grads = [memory.empty_like(w) for memory, w in zip(ctx.memory, stacks, strict=True)]
        grad_rows_Rd = torch.empty_like(rows_Rd)
        scratch = rows_Rd.new_empty(3, max(ctx.counts), w1_EFd.shape[1])
        parts = (t.split(ctx.counts) for t in (rows_Rd, grad_y_Rd, grad_rows_Rd))
        products = (kept[start::3] for start in range(3))
        experts = zip(*parts, *products, *(t.unbind() for t in (*stacks, *grads)), strict=True)
        for rows_rd, grad_y_rd, grad_rows_rd, first_rF, second_rF, gate_rF, w1, w2, w3, *grad_w in experts:
            w1_Fd, w2_dF, w3_Fd = (w.to(rows_Rd.dtype) for w in (w1, w2, w3))
            hidden_rF, grad_hidden_rF, grad_second_rF = scratch[:, : len(rows_rd)]
            torch.mm(grad_y_rd, w2_dF, out=grad_hidden_rF)
            grad_first_rF = _geglu_backward(first_rF, second_rF, gate_rF, grad_hidden_rF, hidden_rF, grad_second_rF)
            pairs = ((grad_first_rF, rows_rd), (grad_y_rd, hidden_rF), (grad_second_rF, rows_rd))
            for grad, (left, right) in zip(grad_w, pairs, strict=True):
                if grad.dtype == left.dtype:
                    torch.mm(left.mT, right, out=grad)
                else:
                    grad.copy_(left.mT @ right)
            torch.mm(grad_first_rF, w1_Fd, out=grad_rows_rd).addmm_(grad_second_rF, w3_Fd)
        return grad_rows_Rd, *grads, None, None, None


class _Grouped(torch.autograd.Function):
    """Three grouped matrix products in the forward and six in the backward pass, for any number of experts."""

    @staticmethod
    def forward(ctx: Any, rows_Rd: Tensor, w1_EFd: Tensor, w2_EdF: Tensor, w3_EFd: Tensor, ends_E: Tensor) -> Tensor:
        w1, w2, w3 = (w.to(rows_Rd.dtype) for w in (w1_EFd, w2_EdF, w3_EFd))
        first_RF, second_RF = (grouped_mm(rows_Rd, w.mT, offs=ends_E) for w in (w1, w3))
        ctx.save_for_backward(rows_Rd, w1_EFd, w2_EdF, w3_EFd, ends_E, first_RF, second_RF)
        hidden_RF = _gelu(first_RF, out=torch.empty_like(first_RF)).mul_(second_RF)
        return grouped_mm(hidden_RF, w2.mT, offs=ends_E)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_Rd: Tensor) -> tuple[Tensor | None, ...]:
        rows_Rd, *stacks, ends_E, first_RF, second_RF = ctx.saved_tensors
        w1, w2, w3 = (w.to(rows_Rd.dtype) for w in stacks)
        grad_y_Rd = grad_y_Rd.contiguous()
        grad_hidden_RF = grouped_mm(grad_y_Rd, w2, offs=ends_E)
        # Recompute the GELU: on a GPU memory is scarcer than time.
        gate_RF, hidden_RF = _gelu(first_RF, out=torch.empty_like(first_RF)), torch.empty_like(first_RF)
        grad_first_RF = _geglu_backward(first_RF, second_RF, gate_RF, grad_hidden_RF, hidden_RF, gate_RF)
        grad_second_RF = gate_RF
        pairs = ((grad_first_RF, rows_Rd), (grad_y_Rd, hidden_RF), (grad_second_RF, rows_Rd))
        grads = [grouped_mm(left.mT, right, offs=ends_E) for left, right in pairs]
        grad_rows_Rd = grouped_mm(grad_first_RF, w1, offs=ends_E)
        grad_rows_Rd += grouped_mm(grad_second_RF, w3, offs=ends_E)
        return grad_rows_Rd, *(g.to(w.dtype) for g, w in zip(grads, stacks, strict=True)), None


class _MaskedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.masked_fill(ctx.saved_tensors[0], 0), None


def can_group(rows_Rd: Tensor, w1_EFd: Tensor) -> bool:
    """Return whether ``geglu_grouped`` applies: bf16 on an sm90 or sm100 GPU, rows of all operands aligned to 16 bytes.

    On other GPUs ``grouped_mm`` reads the counts on the host, and loops.
    """
    aligned = all(size % GROUPED_ALIGNMENT == 0 for size in w1_EFd.shape[1:])
    return rows_Rd.dtype == torch.bfloat16 and aligned and _has_grouped_kernels(rows_Rd.device)


@functools.cache
def _has_grouped_kernels(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (9, 10)


def geglu_grouped(rows_Rd: Tensor, counts_E: Tensor | None, w1_EFd: Tensor, w2_EdF: Tensor, w3_EFd: Tensor) -> Tensor:
    """Compute ``Experts.forward`` with ``torch.nn.functional.grouped_mm``; the counts stay on the device."""
    rows, experts = len(rows_Rd), len(w1_EFd)
    if counts_E is None:
        ends_E = torch.arange(1, experts + 1, dtype=torch.int32, device=rows_Rd.device) * (rows // experts)
        return _Grouped.apply(rows_Rd.contiguous(), w1_EFd, w2_EdF, w3_EFd, ends_E)
    ends_E = counts_E.cumsum(0).to(torch.int32)
    unused_R1 = (torch.arange(rows, device=rows_Rd.device) >= ends_E[-1]).unsqueeze(-1)  # grouped_mm leaves them unset
    rows_Rd = _MaskedGradient.apply(rows_Rd.contiguous(), unused_R1)
    return _Grouped.apply(rows_Rd, w1_EFd, w2_EdF, w3_EFd, ends_E).masked_fill(unused_R1, 0)


def geglu_per_expert(
    rows_Rd: Tensor,
    counts: list[int],
    w1_EFd: Tensor,
    w2_EdF: Tensor,
    w3_EFd: Tensor,
    memory: tuple[ReusedMemory, ...],
) -> Tensor:
    """Compute ``Experts.forward`` one expert at a time.

    Args:
        rows_Rd: rows sorted by expert.
        counts: rows of each expert.
        w1_EFd: W_in.
        w2_EdF: W_out.
        w3_EFd: W_gate.
        memory: for the gradients of the three weights.
    """
    total = sum(counts)
    weights = (w1_EFd, w2_EdF, w3_EFd)
    y_Rd = _PerExpert.apply(rows_Rd[:total], *weights, counts, memory, torch.is_grad_enabled())
    return y_Rd if total == len(rows_Rd) else functional.pad(y_Rd, (0, 0, 0, len(rows_Rd) - total))
