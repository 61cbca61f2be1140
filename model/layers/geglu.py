"""GEGLU's element-wise part ``gelu_tanh(first) * second`` and its gradients: by a kernel each where kernels run."""

import torch
from torch import Tensor
from torch.nn import functional

from model.kernels.available import kernels, usable


def gelu(x: Tensor) -> Tensor:
    """Apply GELU in its tanh approximation, as T5.1.1 and the paper's code do."""
    return functional.gelu(x, approximate="tanh")


def hidden_of(first: Tensor, second: Tensor) -> Tensor:
    """Compute ``gelu(first) * second``, contiguous; not differentiable.

    Args:
        first: ``[..., F]``, contiguous, or the first half of the columns of a contiguous tensor.
        second: the same, or the second half.
    """
    if usable(first):
        return kernels("geglu").geglu(*map(_rows, (first, second))).view(first.shape)
    return gelu(first).mul_(second)


def differentiate(
    first: Tensor,
    second: Tensor,
    grad_hidden: Tensor,
    grad_first: Tensor,
    grad_second: Tensor,
    *,
    hidden: Tensor | None = None,
    gate: Tensor | None = None,
) -> None:
    """Differentiate ``hidden_of``; ``grad_hidden`` is overwritten.

    Args:
        first: the factor under the GELU.
        second: the other factor; the same strides.
        grad_hidden: gradient with respect to ``hidden``; contiguous.
        grad_first: output, the gradient with respect to ``first``; may be ``grad_hidden`` itself.
        grad_second: output, the gradient with respect to ``second``; the same strides; may share memory with ``gate``.
        hidden: output, if not None; contiguous.
        gate: ``gelu(first)``, if the caller has it.
    """
    if usable(first):
        tensors = (first, second, grad_hidden, grad_first, grad_second)
        kernels("geglu").geglu_backward(*map(_rows, tensors), None if hidden is None else _rows(hidden))
        return
    gate = gelu(first) if gate is None else gate
    if hidden is not None:
        torch.mul(gate, second, out=hidden)
    torch.mul(gate, grad_hidden, out=grad_second)
    grad_hidden.mul_(second)
    torch.ops.aten.gelu_backward.grad_input(grad_hidden, first, approximate="tanh", grad_input=grad_first)


def _rows(x: Tensor) -> Tensor:
    """View ``[..., F]`` as a matrix; rows that are equally far apart stay so."""
    return x if x.dim() == 2 else x.view(-1, x.shape[-1])
