"""The dtype of matrix products under autocast."""

import torch
from torch import Tensor


def to_matmul_dtype(x: Tensor) -> Tensor:
    """Cast ``x`` as autocast casts the operands of a matrix product; return it unchanged outside autocast."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
