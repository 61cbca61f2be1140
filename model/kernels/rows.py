"""Dispatch and combine of a sparse layer, one pass over the activations each.

Arguments may have any strides: the kernels count elements of contiguous tensors, so others are copied first.

Shape suffixes: N = choices of a token, T = tokens, R = rows of the experts' buffer, d = d_model.
"""

import triton
import triton.language as tl
from torch import Tensor

MOST_COLUMNS = 1024  # of a row at a time: 8 elements for each of 128 threads
UNROLLED = tl.constexpr(8)  # choices: with more, most are of no expert (expert choice)


@triton.jit
def _gather(x, token, rows, tokens, width, BLOCK: tl.constexpr):
    r = tl.program_id(0).to(tl.int64)
    t = tl.load(token + r)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        values = tl.load(x + t * width + column, mask=(column < width) & (t < tokens), other=0.0)
        tl.store(rows + r * width + column, values, mask=column < width)


@triton.jit
def _add_row(total, rows, gate, slot, at, column, number, width, WEIGHTED: tl.constexpr):
    r = tl.load(slot + at)
    kept = r < number
    values = tl.load(rows + r * width + column, mask=(column < width) & kept, other=0.0).to(tl.float32)
    if WEIGHTED:
        values = values * tl.load(gate + at, mask=kept, other=0.0)
    return total + values


@triton.jit
def _sum(
    rows, gate, slot, y, tokens, number, width, CHOICES: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr
):
    t = tl.program_id(0).to(tl.int64)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float32)
        if CHOICES <= UNROLLED:
            for n in tl.static_range(CHOICES):
                total = _add_row(total, rows, gate, slot, n * tokens + t, column, number, width, WEIGHTED)
        else:
            for n in range(CHOICES):
                total = _add_row(total, rows, gate, slot, n * tokens + t, column, number, width, WEIGHTED)
        tl.store(y + t * width + column, total, mask=column < width)


@triton.jit
def _combine_backward(
    rows, gate, slot, token, grad_y, grad_rows, grad_gate, tokens, width, CHOICES: tl.constexpr, BLOCK: tl.constexpr
):
    r = tl.program_id(0).to(tl.int64)
    t = tl.load(token + r)
    filled = t < tokens
    weight, choice = 0.0, t  # which of the token's choices has this row
    for n in range(CHOICES):
        mine = filled & (tl.load(slot + n * tokens + t, mask=filled, other=-1) == r)
        weight += tl.load(gate + n * tokens + t, mask=mine, other=0.0)
        choice = tl.where(mine, n * tokens + t, choice)
    product = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        here = (column < width) & filled
        grad = tl.load(grad_y + t * width + column, mask=here, other=0.0).to(tl.float32)
        product += grad * tl.load(rows + r * width + column, mask=here, other=0.0).to(tl.float32)
        tl.store(grad_rows + r * width + column, grad * weight, mask=column < width)
    tl.store(grad_gate + choice, tl.sum(product, 0), mask=filled)


def _block(width: int) -> int:
    return min(triton.next_power_of_2(width), MOST_COLUMNS)


def gather(x_Td: Tensor, token_R: Tensor) -> Tensor:
    """Return row ``token_R[r]`` of ``x_Td`` for every r, zeros where it is T: ``[R, d]``, contiguous."""
    (tokens, width), rows_Rd = x_Td.shape, x_Td.new_empty(len(token_R), x_Td.shape[1])
    if len(token_R):
        _gather[(len(token_R),)](x_Td.contiguous(), token_R.contiguous(), rows_Rd, tokens, width, BLOCK=_block(width))
    return rows_Rd


def weighted_sum(rows_Rd: Tensor, gate_NT: Tensor | None, slot_NT: Tensor) -> Tensor:
    """Return ``y[t] = sum_n gate[n, t] * rows[slot[n, t]]``, summed in float32: ``[T, d]``.

    Args:
        rows_Rd: activations.
        gate_NT: weights, float32; None: all 1.
        slot_NT: int64; R where the choice has no row.
    """
    (choices, tokens), (number, width) = slot_NT.shape, rows_Rd.shape
    y_Td = rows_Rd.new_empty(tokens, width)
    rows_Rd, slot_NT = rows_Rd.contiguous(), slot_NT.contiguous()
    gate = slot_NT if gate_NT is None else gate_NT.contiguous()
    sizes = {"CHOICES": choices, "WEIGHTED": gate_NT is not None, "BLOCK": _block(width)}
    if tokens:
        _sum[(tokens,)](rows_Rd, gate, slot_NT, y_Td, tokens, number, width, **sizes)
    return y_Td


def weighted_sum_backward(
    rows_Rd: Tensor, gate_NT: Tensor, slot_NT: Tensor, token_R: Tensor, grad_Td: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``weighted_sum`` for rows and gates; ``token_R`` inverts ``slot_NT``, T if empty."""
    (choices, tokens), width = slot_NT.shape, rows_Rd.shape[1]
    inputs = [tensor.contiguous() for tensor in (rows_Rd, gate_NT, slot_NT, token_R, grad_Td)]
    grad_Rd, grad_gate_NT = rows_Rd.new_empty(rows_Rd.shape), gate_NT.new_zeros(gate_NT.shape)
    tensors = (*inputs, grad_Rd, grad_gate_NT)
    if len(rows_Rd):
        _combine_backward[(len(rows_Rd),)](*tensors, tokens, width, CHOICES=choices, BLOCK=_block(width))
    return grad_Rd, grad_gate_NT
