"""Lets the model take the paths of a GPU on fake tensors, which have shapes and memory but no numbers.

The kernels that a GPU would run are replaced by functions that allocate what those allocate: Triton's kernels, torch's
fused RMSNorm and memory-efficient attention, grouped products.
"""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from model import losses
from model.layers import attention, geglu, norm
from model.moe import dispatch, grouped_geglu, router_product, token_choice_kernels

MODULES = (geglu, dispatch, router_product, token_choice_kernels)


@contextlib.contextmanager
def pretended_gpu() -> Iterator[FakeTensorMode]:
    """Tensors that are made here are fake, and the model computes with them as a Hopper card would."""
    with contextlib.ExitStack() as stack:
        for module in MODULES:
            stack.enter_context(patch.object(module, "usable", lambda _: True))
            stack.enter_context(patch.object(module, "kernels", KERNELS.__getitem__))
        stack.enter_context(patch.object(grouped_geglu, "_has_grouped_kernels", lambda _: True))
        stack.enter_context(patch.object(grouped_geglu.ReusedMemory, "empty_like", lambda _, x: torch.empty_like(x)))
        stack.enter_context(patch.object(norm, "_has_no_kernel", lambda _: False))
        stack.enter_context(patch.object(attention, "needs_bias_gradient", lambda *_: False))
        stack.enter_context(patch.object(losses, "CPU_BLOCK", losses.DEVICE_BLOCK))
        stack.enter_context(patch.object(nn.functional, "dropout", _fused_dropout))
        stack.enter_context(patch.object(nn.functional, "rms_norm", lambda x, _, scale, __: _FusedNorm.apply(x, scale)))
        stack.enter_context(patch.object(nn.functional, "scaled_dot_product_attention", _efficient_attention))
        yield stack.enter_context(FakeTensorMode())


class Routed(NamedTuple):
    """As in ``model.kernels.routing``."""

    expert_NGS: Tensor
    position_NGS: Tensor
    kept_NGS: Tensor
    gate_NGS: Tensor
    slot_NT: Tensor
    token_R: Tensor
    share_GE: Tensor
    sums_G4: Tensor


class _FusedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, scale, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        x, scale, _ = ctx.saved_tensors
        return torch.empty_like(x), None if scale is None else torch.empty_like(scale)


def _fused_dropout(x: Tensor, rate: float, training: bool, _: bool) -> Tensor:
    return torch.native_dropout(x, rate, training)[0] if rate and training else x


def _efficient_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, scale: float) -> Tensor:
    bias = None if attn_mask is None else attn_mask.expand(*q.shape[:3], k.shape[2])
    with torch.autocast("cpu", enabled=False):
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, scale=scale)[0]


def _choose(logits: Tensor, mask: Tensor, draws: Any, *, choices: int, capacity: int, **_: Any) -> tuple[Any, Tensor]:
    groups, size, experts = logits.shape
    shape = (choices, groups, size)

    def of(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    long, real = torch.int64, torch.float32
    routed = Routed(
        of(shape, long), of(shape, long), of(shape, torch.bool), of(shape, real), of((choices, groups * size), long),
        of((experts * groups * capacity,), long), of((groups, experts), real), of((groups, 4), real),
    )  # fmt: skip
    return routed, of(shape, torch.bool)


def _nothing(*_: Any) -> None:
    """Write into tensors that exist."""


KERNELS = {
    "geglu": SimpleNamespace(geglu=lambda first, _: first.new_empty(first.shape), geglu_backward=_nothing),
    "router_product": SimpleNamespace(
        product=lambda x, weight: weight.new_empty(len(x), len(weight)),
        product_backward=lambda x, weight, _: (torch.empty_like(x), torch.empty_like(weight)),
    ),
    "routing": SimpleNamespace(
        choose=_choose, Routed=Routed, backward=lambda logits, *_, **__: torch.empty_like(logits)
    ),
    "rows": SimpleNamespace(
        gather=lambda x, token: x.new_empty(len(token), x.shape[1]),
        weighted_sum=lambda rows, _, slot: rows.new_empty(slot.shape[1], rows.shape[1]),
        weighted_sum_backward=lambda rows, gate, *_: (torch.empty_like(rows), torch.empty_like(gate)),
    ),
}
