"""GEGLU of several experts as one autograd function: a loop on a CPU, grouped matrix products on a GPU.

Autograd would keep four activations of width d_ff per row. These functions keep the products with W_in and W_gate (on a
CPU also the GELU, which is slow there) and write every gradient once, in its final place.

Shape suffixes: E = experts, R = rows of all of them, r = rows of one, d = d_model, F = d_ff.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.functional import grouped_mm

from model.layers.dropout import drop, split
from model.layers.geglu import differentiate, gelu, hidden_of
from model.layers.products import cast_together
from model.layers.values import has_values

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
        if not has_values(tensor):
            return torch.empty_like(tensor, memory_format=torch.contiguous_format)
        storage, size = self._storage, tensor.numel() * tensor.element_size()
        fits = storage is not None and storage.nbytes() == size and storage.device == tensor.device
        if storage is None or not fits or torch._C._storage_Use_Count(storage._cdata) > 1:
            storage = self._storage = torch.UntypedStorage(size, device=tensor.device)
        shape = tensor.shape
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage, 0, shape, strides)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()  # a copy starts without memory


def new_gradients(
    memory: Sequence[ReusedMemory], stacks: Sequence[Tensor], wanted: Sequence[bool]
) -> list[Tensor] | list[None]:
    """Return memory for the gradients of all stacks; None for each if none is wanted, as of frozen experts."""
    if not any(wanted):
        return [None] * len(stacks)
    return [of_one.empty_like(w) for of_one, w in zip(memory, stacks, strict=True)]


def by_expert(grads: Sequence[Tensor] | Sequence[None], experts: int) -> list[Sequence[Tensor | None]]:
    """Return, for each stack, the gradient of every expert."""
    return [[None] * experts if grad is None else grad.unbind() for grad in grads]


def write_weight_gradients(grads: Sequence[Tensor | None], pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Write ``left.mT @ right`` of each pair into its gradient, in the gradient's dtype; nothing for None."""
    for grad, (left, right) in zip(grads, pairs, strict=True):
        if grad is None:
            continue
        if grad.dtype == left.dtype:
            torch.mm(left.mT, right, out=grad)
        else:
            grad.copy_(left.mT @ right)


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
        dropout_RF: Tensor | None,
    ) -> Tensor:
        y_Rd = torch.empty_like(rows_Rd)
        scratch = rows_Rd.new_empty(max(counts), w1_EFd.shape[1])  # one for all experts: it stays in the cache
        kept: list[Tensor] = []
        parts = (rows_Rd.split(counts), y_Rd.split(counts), w1_EFd.unbind(), w2_EdF.unbind(), w3_EFd.unbind())
        for rows_rd, y_rd, dropout_rF, *weights in zip(*parts[:2], split(dropout_RF, counts), *parts[2:], strict=True):
            w1_Fd, w2_dF, w3_Fd = (w.to(rows_Rd.dtype) for w in weights)
            first_rF, second_rF = rows_rd @ w1_Fd.mT, rows_rd @ w3_Fd.mT
            gate_rF = gelu(first_rF)
            hidden_rF = torch.mul(gate_rF, second_rF, out=scratch[: len(rows_rd)])
            drop(hidden_rF, dropout_rF)
            torch.mm(hidden_rF, w2_dF.mT, out=y_rd)
            if differentiable:
                kept += first_rF, second_rF, gate_rF
        ctx.save_for_backward(rows_Rd, dropout_RF, w1_EFd, w2_EdF, w3_EFd, *kept)
        ctx.counts, ctx.memory = counts, memory
        return y_Rd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_Rd: Tensor) -> tuple[Tensor | None, ...]:
        rows_Rd, dropout_RF, w1_EFd, w2_EdF, w3_EFd, *kept = ctx.saved_tensors
        stacks = (w1_EFd, w2_EdF, w3_EFd)
        grads = new_gradients(ctx.memory, stacks, ctx.needs_input_grad[1:4])
        grad_rows_Rd = torch.empty_like(rows_Rd)
        scratch = rows_Rd.new_empty(3, max(ctx.counts), w1_EFd.shape[1])
        parts = (split(t, ctx.counts) for t in (rows_Rd, grad_y_Rd, grad_rows_Rd, dropout_RF))
        products = (kept[start::3] for start in range(3))
        weights = (*(w.unbind() for w in stacks), *by_expert(grads, len(w1_EFd)))
        experts = zip(*parts, *products, *weights, strict=True)
        for rows_rd, grad_y_rd, grad_rows_rd, dropout_rF, first_rF, second_rF, gate_rF, w1, w2, w3, *grad_w in experts:
            w1_Fd, w2_dF, w3_Fd = (w.to(rows_Rd.dtype) for w in (w1, w2, w3))
            hidden_rF, grad_hidden_rF, grad_second_rF = scratch[:, : len(rows_rd)]
            torch.mm(grad_y_rd, w2_dF, out=grad_hidden_rF)
            drop(grad_hidden_rF, dropout_rF)
            grad_first_rF = grad_hidden_rF
            differentiate(
                first_rF, second_rF, grad_hidden_rF, grad_first_rF, grad_second_rF, hidden=hidden_rF, gate=gate_rF
            )
            drop(hidden_rF, dropout_rF)
            pairs = ((grad_first_rF, rows_rd), (grad_y_rd, hidden_rF), (grad_second_rF, rows_rd))
            write_weight_gradients(grad_w, pairs)
            torch.mm(grad_first_rF, w1_Fd, out=grad_rows_rd).addmm_(grad_second_rF, w3_Fd)
        return grad_rows_Rd, *grads, None, None, None, None


class _Grouped(torch.autograd.Function):
    """Three grouped matrix products in the forward and six in the backward pass, for any number of experts.

    Weights that must be cast are cast together, W_in and W_gate as one matrix: two products forward, four backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows_Rd: Tensor,
        w1_EFd: Tensor,
        w2_EdF: Tensor,
        w3_EFd: Tensor,
        ends_E: Tensor,
        keep: bool,
        dropout_RF: Tensor | None,
    ) -> Tensor:
        stacks = (w1_EFd, w2_EdF, w3_EFd)
        *into, w2 = _matrices(stacks, rows_Rd.dtype)
        products = [grouped_mm(rows_Rd, w.mT, offs=ends_E) for w in into]
        ctx.cast = w2 is not w2_EdF
        kept = (*into, w2) if keep and ctx.cast else stacks
        ctx.save_for_backward(rows_Rd, ends_E, dropout_RF, *products, *kept)
        ctx.count, ctx.kept, ctx.dtypes = len(products), keep and ctx.cast, [w.dtype for w in stacks]
        return grouped_mm(drop(hidden_of(*_halves(products)), dropout_RF), w2.mT, offs=ends_E)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_Rd: Tensor) -> tuple[Tensor | None, ...]:
        rows_Rd, ends_E, dropout_RF, *rest = ctx.saved_tensors
        products, matrices = rest[: ctx.count], rest[ctx.count :]
        *into, w2 = matrices if ctx.kept else _matrices(matrices, rows_Rd.dtype)
        grad_y_Rd = grad_y_Rd.contiguous()
        grad_hidden_RF = drop(grouped_mm(grad_y_Rd, w2, offs=ends_E), dropout_RF)
        # Recompute the hidden activation: on a GPU memory is scarcer than time.
        hidden_RF = torch.empty_like(grad_hidden_RF)
        grads = [torch.empty_like(product) for product in products]
        (first_RF, second_RF), of_both = _halves(products), _halves(grads)
        differentiate(first_RF, second_RF, grad_hidden_RF, *of_both, hidden=hidden_RF)
        of_weights: Sequence[Tensor | None] = (None, None, None)
        if any(ctx.needs_input_grad[1:4]):
            grad_w2 = grouped_mm(grad_y_Rd.mT, drop(hidden_RF, dropout_RF), offs=ends_E)
            grad_into = [grouped_mm(grad.mT, rows_Rd, offs=ends_E) for grad in grads]
            grad_w1, grad_w3 = grad_into if len(grad_into) == 2 else grad_into[0].chunk(2, dim=1)
            of_weights = [g.to(dtype) for g, dtype in zip((grad_w1, grad_w2, grad_w3), ctx.dtypes, strict=True)]
        grad_rows_Rd = grouped_mm(grads[0], into[0], offs=ends_E)
        if len(grads) == 2:
            grad_rows_Rd += grouped_mm(grads[1], into[1], offs=ends_E)
        return grad_rows_Rd, *of_weights, None, None, None


def _matrices(stacks: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return W_in, W_gate and W_out, or if they must be cast, W_in above W_gate and W_out."""
    w1_EFd, w2_EdF, w3_EFd = stacks
    if w1_EFd.dtype == dtype:
        return [w1_EFd, w3_EFd, w2_EdF]
    return cast_together(((w1_EFd, w3_EFd), (w2_EdF,)), dtype)


def _halves(products: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the products with W_in and W_gate, which may be one."""
    first, second = products if len(products) == 2 else products[0].chunk(2, dim=-1)
    return first, second


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


def geglu_grouped(
    rows_Rd: Tensor,
    counts_E: Tensor | None,
    w1_EFd: Tensor,
    w2_EdF: Tensor,
    w3_EFd: Tensor,
    *,
    keep: bool = True,
    dropout_RF: Tensor | None = None,
) -> Tensor:
    """Compute ``Experts.forward`` with ``torch.nn.functional.grouped_mm``; the counts stay on the device.

    Args:
        rows_Rd: rows sorted by expert.
        counts_E: rows of each expert; None: equal ones.
        w1_EFd: W_in.
        w2_EdF: W_out.
        w3_EFd: W_gate.
        keep: whether to keep weights that must be cast for the backward pass, or to cast them again there.
        dropout_RF: see ``model.layers.dropout.factors``.
    """
    return grouped(
        lambda rows_Rd, ends_E: _Grouped.apply(rows_Rd, w1_EFd, w2_EdF, w3_EFd, ends_E, keep, dropout_RF),
        rows_Rd,
        counts_E,
        len(w1_EFd),
    )


def grouped(
    product: Callable[[Tensor, Tensor], Tensor], rows_Rd: Tensor, counts_E: Tensor | None, experts: int
) -> Tensor:
    """Call ``product`` with contiguous rows and the end of each expert's; rows beyond the last end come out as 0."""
    rows = len(rows_Rd)
    if counts_E is None:
        each = rows // experts
        ends_E = torch.arange(each, rows + 1, each, dtype=torch.int32, device=rows_Rd.device)
        return product(rows_Rd.contiguous(), ends_E)
    ends_E = counts_E.cumsum(0).to(torch.int32)
    unused_R1 = (torch.arange(rows, device=rows_Rd.device) >= ends_E[-1]).unsqueeze(-1)  # grouped_mm leaves them unset
    return product(_MaskedGradient.apply(rows_Rd.contiguous(), unused_R1), ends_E).masked_fill(unused_R1, 0)


def geglu_per_expert(
    rows_Rd: Tensor,
    counts: list[int],
    w1_EFd: Tensor,
    w2_EdF: Tensor,
    w3_EFd: Tensor,
    memory: tuple[ReusedMemory, ...],
    dropout_RF: Tensor | None = None,
) -> Tensor:
    """Compute ``Experts.forward`` one expert at a time.

    Args:
        rows_Rd: rows sorted by expert.
        counts: rows of each expert.
        w1_EFd: W_in.
        w2_EdF: W_out.
        w3_EFd: W_gate.
        memory: for the gradients of the three weights.
        dropout_RF: see ``model.layers.dropout.factors``.
    """
    total = sum(counts)
    weights = (w1_EFd, w2_EdF, w3_EFd)
    dropout_RF = None if dropout_RF is None else dropout_RF[:total]
    y_Rd = _PerExpert.apply(rows_Rd[:total], *weights, counts, memory, torch.is_grad_enabled(), dropout_RF)
    return y_Rd if total == len(rows_Rd) else functional.pad(y_Rd, (0, 0, 0, len(rows_Rd) - total))
