"""Rows of all experts on this rank → rows of this rank's experts from all ranks, and back.

Shape suffixes: W = ranks of the expert-parallel group, E = experts of the layer, L = E / W experts of one rank,
R = rows on this rank before the exchange, X = rows on this rank after it, r = rows of one expert from one rank,
d = d_model.
"""

import deepspeed.comm as dist
import torch
from torch import Tensor

from parallel.all_to_all import Traffic, Transfer


class EqualExchange:
    """Every expert has as many rows as any other: R = E * r, X = L * W * r."""

    counts_L = None

    def __init__(self, group: dist.ProcessGroup, traffic: Traffic, num_local: int):
        self.world, self.num_local = dist.get_world_size(group=group), num_local
        self.transfers = [Transfer(group, traffic) for _ in range(2)]

    def to_experts(self, rows_Rd: Tensor) -> Tensor:
        """``[R, d]`` → ``[X, d]``, sorted by local expert."""
        to = self.transfers[0]
        received = to.finish(to.start(rows_Rd))
        return received.view(self.world, self.num_local, -1, received.shape[-1]).transpose(0, 1).flatten(0, 2)

    def from_experts(self, rows_Xd: Tensor) -> Tensor:
        """The inverse of ``to_experts``."""
        back = self.transfers[1]
        rows_Xd = rows_Xd.view(self.num_local, self.world, -1, rows_Xd.shape[-1]).transpose(0, 1).flatten(0, 2)
        return back.finish(back.start(rows_Xd))


class RaggedExchange:
    """Any number of rows for each expert, agreed upon by an exchange of counts first.

    Collective on construction. Waits for the device once, since a collective needs its splits on the host.

    Args:
        counts_E: rows of each expert on this rank, int64; they add up to R.
        group, traffic: of the expert-parallel ranks.
    """

    def __init__(self, counts_E: Tensor, group: dist.ProcessGroup, traffic: Traffic):
        world = dist.get_world_size(group=group)
        received_E = torch.empty_like(counts_E)  # [W, L]: from each rank, for each local expert
        dist.all_to_all_single(received_E, counts_E.contiguous(), group=group)
        self.counts_L = received_E.view(world, -1).sum(0)
        self.sent_WL, self.received_WL = torch.stack((counts_E, received_E)).view(2, world, -1).tolist()
        send, receive = ([sum(row) for row in rows_WL] for rows_WL in (self.sent_WL, self.received_WL))
        self.transfers = [Transfer(group, traffic, send, receive), Transfer(group, traffic, receive, send)]

    def to_experts(self, rows_Rd: Tensor) -> Tensor:
        """``[R, d]`` → ``[X, d]``, sorted by local expert."""
        to = self.transfers[0]
        return _transposed(to.finish(to.start(rows_Rd)), self.received_WL)

    def from_experts(self, rows_Xd: Tensor) -> Tensor:
        """The inverse of ``to_experts``."""
        back = self.transfers[1]
        received_LW = [list(column) for column in zip(*self.received_WL, strict=True)]
        return back.finish(back.start(_transposed(rows_Xd, received_LW)))


def _transposed(rows: Tensor, counts: list[list[int]]) -> Tensor:
    """Blocks of rows in row-major order of ``counts`` → in column-major order."""
    blocks = iter(rows.split([count for row in counts for count in row]))
    matrix = [[next(blocks) for _ in row] for row in counts]
    return torch.cat([block for column in zip(*matrix, strict=True) for block in column])
