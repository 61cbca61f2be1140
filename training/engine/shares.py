"""Figures of a row that are sums or maxima over ranks: every rank gives its share, and one collective reduces them all.

Shape suffixes: R = ranks, N = numbers of all shares.
"""

from collections.abc import Sequence
from typing import NamedTuple

import deepspeed.comm as dist
import torch
from torch import Tensor


class Share(NamedTuple):
    """What one rank adds: vectors of the same lengths on every rank, on any device."""

    sums: Tensor
    maxima: Tensor


class Reduced(NamedTuple):
    """A ``Share`` over all ranks, on the host."""

    sums: list[float]
    maxima: list[float]


def share(sums: Sequence[float] | Tensor = (), maxima: Sequence[float] | Tensor = ()) -> Share:
    """Return a share of numbers that are on the host or on a device."""
    return Share(*(torch.as_tensor(values, dtype=torch.float64) for values in (sums, maxima)))


def reduce_shares(shares: Sequence[Share], device: torch.device | str) -> list[Reduced]:
    """Return each share reduced over all ranks; one all-gather, then one read by the host.

    Gathered, because no all-reduce makes sums and maxima at once; and added in the order of the ranks, so that every
    rank gets the same numbers, at every repetition.
    """
    own_N = torch.cat([vector.to(device, torch.float64) for one in shares for vector in one])
    ranks = [torch.empty_like(own_N) for _ in range(dist.get_world_size())]
    dist.all_gather(ranks, own_N)
    of_ranks_RN = torch.stack(ranks)
    sums, maxima = torch.stack((of_ranks_RN.sum(0), of_ranks_RN.amax(0))).tolist()
    reduced, at = [], 0
    for one in shares:
        middle = at + len(one.sums)
        end = middle + len(one.maxima)
        reduced.append(Reduced(sums[at:middle], maxima[middle:end]))
        at = end
    return reduced
