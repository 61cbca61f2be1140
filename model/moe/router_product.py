"""The router's matrix product in float32 for inputs of lower precision, without a float32 copy of all inputs.

Shape suffixes: T = tokens, d = d_model, E = experts.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from model.kernels.available import kernels, usable

CPU_BLOCK = 1 << 9  # tokens: fits a core's cache
DEVICE_BLOCK = 1 << 14  # tokens: bounds the scratch memory
KERNEL_EXPERTS = 128  # their sums fit the registers of a kernel's program


class _RouterProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_Td: Tensor, weight_Ed: Tensor) -> Tensor:
        ctx.save_for_backward(x_Td, weight_Ed)
        if _has_kernel(x_Td, weight_Ed):
            return kernels("router_product").product(x_Td, weight_Ed)
        logits_TE = weight_Ed.new_empty(len(x_Td), len(weight_Ed))
        for block in _blocks(x_Td):
            torch.mm(x_Td[block].to(weight_Ed.dtype), weight_Ed.t(), out=logits_TE[block])
        return logits_TE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor, Tensor | None]:
        x_Td, weight_Ed = ctx.saved_tensors
        if _has_kernel(x_Td, weight_Ed):
            return kernels("router_product").product_backward(x_Td, weight_Ed, grad_TE)
        grad_Td = torch.empty_like(x_Td)
        grad_Ed = torch.zeros_like(weight_Ed) if ctx.needs_input_grad[1] else None  # None: frozen
        for block in _blocks(x_Td):
            grad_Td[block] = grad_TE[block] @ weight_Ed
            if grad_Ed is not None:
                grad_Ed.addmm_(grad_TE[block].t(), x_Td[block].to(weight_Ed.dtype))
        return grad_Td, grad_Ed


def router_product(x: Tensor, weight_Ed: Tensor) -> Tensor:
    """Compute logits ``[..., E]`` in the dtype of the weight, float32.

    Inputs of lower precision are cast block by block, in the forward and the backward pass: autograd would keep a
    float32 copy of them in every sparse layer until the backward pass, and then allocate a float32 gradient.

    Args:
        x: ``[..., d]``.
        weight_Ed: float32; autocast must be off.
    """
    if x.dtype == weight_Ed.dtype:
        return functional.linear(x, weight_Ed)
    return _RouterProduct.apply(x.reshape(-1, x.shape[-1]), weight_Ed).view(*x.shape[:-1], len(weight_Ed))


def _has_kernel(x_Td: Tensor, weight_Ed: Tensor) -> bool:
    return len(weight_Ed) <= KERNEL_EXPERTS and usable(x_Td)


def _blocks(x_Td: Tensor) -> Iterator[slice]:
    size = CPU_BLOCK if x_Td.device.type == "cpu" else DEVICE_BLOCK
    return (slice(start, start + size) for start in range(0, len(x_Td), size))
