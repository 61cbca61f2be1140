"""The dtype of matrix products under autocast."""

import torch
from torch import Tensor


def matmul_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype to which autocast casts ``x`` as an operand of a matrix product; its own outside autocast."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def to_matmul_dtype(x: Tensor) -> Tensor:
    """Cast ``x`` as autocast casts the operands of a matrix product; return it unchanged outside autocast."""
    return x.to(matmul_dtype(x))
