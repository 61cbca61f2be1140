"""The router's product in float32 with inputs of lower precision, which are cast in registers.

The products are ``tf32x3``: each float32 factor is split in two tf32 numbers, which together hold 22 of its 24 bits
(inputs in bf16 or fp16 are exact as one), and sums are float32.

Shape suffixes: T = tokens, d = d_model, E = experts, P = parts of the tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LEAST = 16  # size of a factor's axis in a matrix product
ROWS = 64  # tokens of a program at a time
PARTS = 64  # of the tokens, whose weight gradients are summed afterwards, always in the same order


@triton.jit
def _forward(
    x, weight, logits, tokens, width, experts, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXPERTS: tl.constexpr
):
    row, e = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, EXPERTS)
    total = tl.zeros((ROWS, EXPERTS), tl.float32)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = (row[:, None] < tokens) & (column[None, :] < width)
        a = tl.load(x + row[:, None] * width + column[None, :], mask=inside, other=0.0).to(tl.float32)
        inside = (e[None, :] < experts) & (column[:, None] < width)
        b = tl.load(weight + e[None, :] * width + column[:, None], mask=inside, other=0.0)
        total = tl.dot(a, b, total, input_precision="tf32x3")
    tl.store(logits + row[:, None] * experts + e[None, :], total, mask=(row[:, None] < tokens) & (e[None, :] < experts))


@triton.jit
def _backward(
    x,
    weight,
    grad,
    grad_x,
    grad_weight,
    tokens,
    width,
    experts,
    part,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    p, column, e = (
        tl.program_id(0).to(tl.int64),
        tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS),
        tl.arange(0, EXPERTS),
    )
    inside = (e[:, None] < experts) & (column[None, :] < width)
    w = tl.load(weight + e[:, None] * width + column[None, :], mask=inside, other=0.0)
    total = tl.zeros((EXPERTS, COLUMNS), tl.float32)
    end = tl.minimum((p + 1) * part, tokens)
    for start in range(p * part, end, ROWS):
        row = start + tl.arange(0, ROWS)
        here = (row[:, None] < end) & (column[None, :] < width)
        a = tl.load(x + row[:, None] * width + column[None, :], mask=here, other=0.0).to(tl.float32)
        g = tl.load(
            grad + row[:, None] * experts + e[None, :], mask=(row[:, None] < end) & (e[None, :] < experts), other=0.0
        )
        tl.store(grad_x + row[:, None] * width + column[None, :], tl.dot(g, w, input_precision="tf32x3"), mask=here)
        total = tl.dot(tl.trans(g), a, total, input_precision="tf32x3")
    tl.store(grad_weight + (p * experts + e[:, None]) * width + column[None, :], total, mask=inside)


def product(x_Td: Tensor, weight_Ed: Tensor) -> Tensor:
    """Return ``x W^T`` in float32: ``[T, E]``; any strides, the weight in float32, at most 128 experts."""
    x_Td, weight_Ed = x_Td.contiguous(), weight_Ed.contiguous()
    (tokens, width), experts = x_Td.shape, len(weight_Ed)
    logits_TE = weight_Ed.new_empty(tokens, experts)
    padded = max(LEAST, triton.next_power_of_2(experts))
    sizes = {"ROWS": ROWS, "COLUMNS": min(64, 4096 // padded), "EXPERTS": padded}
    if tokens:
        _forward[(triton.cdiv(tokens, ROWS),)](x_Td, weight_Ed, logits_TE, tokens, width, experts, **sizes)
    return logits_TE


def product_backward(x_Td: Tensor, weight_Ed: Tensor, grad_TE: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``product`` for x, in its dtype, and for the weight, float32."""
    x_Td, weight_Ed, grad_TE = (tensor.contiguous() for tensor in (x_Td, weight_Ed, grad_TE))
    (tokens, width), experts = x_Td.shape, len(weight_Ed)
    part = triton.cdiv(tokens, PARTS * ROWS) * ROWS
    parts = triton.cdiv(tokens, max(part, 1))
    grad_Td, grad_PEd = torch.empty_like(x_Td), weight_Ed.new_empty(parts, experts, width)
    padded = max(LEAST, triton.next_power_of_2(experts))
    sizes = {"ROWS": ROWS if padded < 64 else ROWS // 2, "COLUMNS": 64, "EXPERTS": padded, "num_warps": 8}
    if tokens:
        tensors = (x_Td, weight_Ed, grad_TE, grad_Td, grad_PEd)
        _backward[(parts, triton.cdiv(width, 64))](*tensors, tokens, width, experts, part, **sizes)
    return grad_Td, grad_PEd.sum(0)
