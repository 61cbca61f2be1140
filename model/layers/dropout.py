"""Dropout as a tensor of factors, for autograd functions that apply it to what they compute inside.

Shape suffixes: R = rows, F = d_ff.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def factors(rows_Rd: Tensor, width: int, rate: float) -> Tensor:
    """Draw ``[R, F]`` in the dtype of the rows: 0 with probability ``rate``, otherwise 1 / (1 - rate)."""
    kept_RF = torch.empty(len(rows_Rd), width, dtype=rows_Rd.dtype, device=rows_Rd.device)
    return kept_RF.bernoulli_(1 - rate).div_(1 - rate)


def drop(x: Tensor, factors_RF: Tensor | None) -> Tensor:
    """Multiply ``x`` by its factors in place; without them nothing is dropped."""
    return x if factors_RF is None else x.mul_(factors_RF)


def split(x_Rn: Tensor | None, counts: list[int]) -> Sequence[Tensor | None]:
    """Return the rows of each expert; None for each if there is no tensor."""
    return [None] * len(counts) if x_Rn is None else x_Rn.split(counts)
