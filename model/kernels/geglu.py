"""GEGLU's element-wise part in one pass forward and one backward.

Shape suffixes: R = rows, F = d_ff. Columns are contiguous; rows may be apart, as in halves of ``[R, 2 F]``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # columns of a program: 8 elements for each of 128 threads

SLOPE = tl.constexpr(0.7978845608028654)  # sqrt(2 / pi)
CUBIC = tl.constexpr(0.044715)


@triton.jit
def _sigmoid_of(x):
    # gelu_tanh(x) = x / 2 * (1 + tanh(u)) = x * sigmoid(2 u)
    return tl.sigmoid(2.0 * SLOPE * x * (1.0 + CUBIC * x * x))


@triton.jit
def _forward(first, second, hidden, width, stride, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(first + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(second + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(hidden + row * width + column, x * _sigmoid_of(x) * y, mask=inside)


@triton.jit
def _backward(
    first, second, grad_hidden, hidden, grad_first, grad_second, width, stride, grad_stride,
    HIDDEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(first + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(second + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_hidden + row * width + column, mask=inside, other=0.0).to(tl.float32)
    s = _sigmoid_of(x)
    gate = x * s
    slope = s + gate * (1.0 - s) * (2.0 * SLOPE * (1.0 + 3.0 * CUBIC * x * x))
    if HIDDEN:
        tl.store(hidden + row * width + column, gate * y, mask=inside)
    tl.store(grad_first + row * grad_stride + column, grad * y * slope, mask=inside)
    tl.store(grad_second + row * grad_stride + column, grad * gate, mask=inside)


def geglu(first_RF: Tensor, second_RF: Tensor) -> Tensor:
    """Return ``gelu_tanh(first) * second``, computed in float32, contiguous.

    Raises:
        ValueError: the arguments' strides differ, or their columns are not contiguous.
    """
    rows, width = first_RF.shape
    _check_strides(first_RF, second_RF)
    hidden_RF = torch.empty(rows, width, dtype=first_RF.dtype, device=first_RF.device)
    if rows:
        grid = (rows, triton.cdiv(width, BLOCK))
        _forward[grid](first_RF, second_RF, hidden_RF, width, first_RF.stride(0), BLOCK=BLOCK)
    return hidden_RF


def geglu_backward(
    first_RF: Tensor,
    second_RF: Tensor,
    grad_hidden_RF: Tensor,
    grad_first_RF: Tensor,
    grad_second_RF: Tensor,
    hidden_RF: Tensor | None,
) -> None:
    """Write the gradients of both factors and, if it is not None, ``hidden = geglu(first, second)``.

    Args:
        first_RF: the factor under the GELU.
        second_RF: the other; the same strides.
        grad_hidden_RF: gradient of the product; contiguous.
        grad_first_RF: output; may be ``grad_hidden_RF``.
        grad_second_RF: output; the same strides as the other gradient.
        hidden_RF: output or None; contiguous.

    Raises:
        ValueError: strides are not as said here.
    """
    rows, width = first_RF.shape
    _check_strides(first_RF, second_RF)
    _check_strides(grad_first_RF, grad_second_RF)
    if not (grad_hidden_RF.is_contiguous() and (hidden_RF is None or hidden_RF.is_contiguous())):
        raise ValueError("grad_hidden_RF and hidden_RF must be contiguous")
    output, wanted = (grad_first_RF, False) if hidden_RF is None else (hidden_RF, True)
    tensors = (first_RF, second_RF, grad_hidden_RF, output, grad_first_RF, grad_second_RF)
    if rows:
        grid, strides = (rows, triton.cdiv(width, BLOCK)), (first_RF.stride(0), grad_first_RF.stride(0))
        _backward[grid](*tensors, width, *strides, HIDDEN=wanted, BLOCK=BLOCK)


def _check_strides(first_RF: Tensor, second_RF: Tensor) -> None:
    if first_RF.stride() != second_RF.stride() or (first_RF.shape[1] > 1 and first_RF.stride(1) != 1):
        raise ValueError(f"strides must be equal, of columns 1: {first_RF.stride()}, {second_RF.stride()}")
