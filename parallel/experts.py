"""The experts of one rank, which serve all ranks of the expert-parallel group.

Shape suffixes: E = experts of the layer, R = rows on this rank, d = d_model.
"""

import functools

import deepspeed.comm as dist
from torch import Tensor

from model.config import StMoeConfig
from model.moe.experts import Experts
from parallel.all_to_all import Traffic
from parallel.exchange import EqualExchange, Exchange, RaggedExchange


class ExchangedExperts(Experts):
    """This rank's share of a layer's experts; their rows are exchanged over the expert-parallel group.

    Args:
        config: the model's; its ``num_experts`` are split equally over ``group``.
        group: the expert-parallel group.
        chunks: equal parts of this rank's experts; one part computes while the rows of others are exchanged.
    """

    def __init__(self, config: StMoeConfig, group: dist.ProcessGroup, chunks: int):
        num_local = config.num_experts // dist.get_world_size(group=group)
        super().__init__(config, num_local, first=dist.get_rank(group=group) * num_local)
        self.group, self.chunks, self.traffic = group, chunks, Traffic()

    def forward(self, rows_Rd: Tensor, counts_E: Tensor | None = None) -> Tensor:
        """Run the experts of all ranks on this rank's rows, see ``Experts.forward``; collective over the group."""
        if dist.get_world_size(group=self.group) == 1:
            return super().forward(rows_Rd, counts_E)
        exchange: Exchange
        if counts_E is None:
            exchange = EqualExchange(self.num_local, self.group, self.traffic, self.chunks)
        else:
            exchange = RaggedExchange(counts_E, self.group, self.traffic, self.chunks)
        if self.chunks == 1:
            return exchange.through(rows_Rd, [super().forward])
        size = self.num_local // self.chunks
        # split, unlike slicing, has one backward node for all chunks.
        weights = zip(self.w1.split(size), self.w2.split(size), self.w3.split(size), strict=True)
        chunks = [functools.partial(self.run, weights=w, first=chunk * size) for chunk, w in enumerate(weights)]
        return exchange.through(rows_Rd, chunks)
