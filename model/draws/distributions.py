"""What the numbers of a parameter are drawn from, and torch's functions that draw them."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Generator, Tensor, nn


@dataclass(frozen=True)
class Constant:
    """One value for all numbers."""

    value: float


@dataclass(frozen=True)
class Normal:
    """N(0, std^2), ``truncated`` at two sigma or not."""

    std: float
    truncated: bool = False


Distribution = Constant | Normal


class Draw(NamedTuple):
    """What is to be drawn: a contiguous tensor of any shape, dtype and device, filled in place."""

    target: Tensor
    distribution: Distribution
    seed: int


def fill(tensor: Tensor, distribution: Distribution, generator: Generator | None) -> Tensor:
    """Fill a tensor in place with torch's functions, in the calling thread, and return it."""
    if isinstance(distribution, Constant):
        return tensor.fill_(distribution.value)
    std = distribution.std
    if distribution.truncated:
        return nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std, generator=generator)
    return tensor.normal_(0.0, std, generator=generator)
