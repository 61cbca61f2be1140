"""Exchanges this rank's rows of all experts for all ranks' rows of this rank's experts, and back, in chunks of experts.

Shape suffixes: W = ranks of the expert-parallel group, E = experts of the layer, L = E / W experts of one rank,
K = chunks, R = rows on this rank before the exchange, X = rows of a chunk's local experts from all ranks,
r = rows of one expert from one rank, d = d_model.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import deepspeed.comm as dist
import torch
from torch import Tensor

from parallel.all_to_all import Traffic, Transfer

Run = Callable[[Tensor, Tensor | None], Tensor]


class Exchange(ABC):
    """Sends rows to the ranks of their experts and back: two transfers per chunk of experts."""

    there: Sequence[Transfer]  # to the experts, one per chunk
    back: Sequence[Transfer]  # from the experts, one per chunk

    def through(self, rows_Rd: Tensor, experts: Sequence[Run]) -> Tensor:
        """Run the experts of all ranks on the rows of all ranks: ``[R, d]`` → ``[R, d]``; collective.

        While the experts of one chunk compute, later chunks are being sent and earlier ones returned. The same holds in
        the backward pass, which autograd runs in reverse order on every rank.

        Args:
            rows_Rd: rows sorted by global expert.
            experts: one function per chunk, which maps its rows ``[X, d]``, sorted by expert, and their counts (None if
                equal) to ``[X, d]``.
        """
        sent = [transfer.start(rows) for transfer, rows in zip(self.there, self.split(rows_Rd), strict=True)]
        returning = []
        for chunk, run in enumerate(experts):
            rows_Xd = self.sort(self.there[chunk].finish(sent[chunk]), chunk)
            y_Xd = run(rows_Xd, self.counts(chunk))
            returning.append(self.back[chunk].start(self.unsort(y_Xd, chunk)))
        return self.join([transfer.finish(y) for transfer, y in zip(self.back, returning, strict=True)])

    @abstractmethod
    def counts(self, chunk: int) -> Tensor | None:
        """Return the rows of each expert of the chunk, from all ranks; None: equal numbers."""

    @abstractmethod
    def split(self, rows_Rd: Tensor) -> Sequence[Tensor]:
        """Return the rows to send for each chunk, sorted by receiving rank, then by expert."""

    @abstractmethod
    def sort(self, rows_Xd: Tensor, chunk: int) -> Tensor:
        """Reorder received rows from sorted by rank to sorted by expert."""

    @abstractmethod
    def unsort(self, rows_Xd: Tensor, chunk: int) -> Tensor:
        """Invert ``sort``."""

    @abstractmethod
    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Invert ``split``."""


class EqualExchange(Exchange):
    """Exchange of equally many rows per expert: R = E * r.

    Args:
        num_local: L.
        group: the expert-parallel group.
        traffic: accumulates bytes and seconds.
        chunks: K; divides L.
    """

    def __init__(self, num_local: int, group: dist.ProcessGroup, traffic: Traffic, chunks: int = 1):
        self.world, self.experts = dist.get_world_size(group=group), num_local // chunks
        self.there, self.back = ([Transfer(group, traffic) for _ in range(chunks)] for _ in range(2))

    def counts(self, chunk: int) -> None:
        """Return None: all experts have equally many rows."""

    def split(self, rows_Rd: Tensor) -> Sequence[Tensor]:
        """Split ``[R, d]``, viewed as ``[W, K, L / K * r, d]``, along K; a single chunk is sent without a copy."""
        if len(self.there) == 1:
            return [rows_Rd]
        return [
            part.flatten(0, 1) for part in rows_Rd.view(self.world, len(self.there), -1, rows_Rd.shape[-1]).unbind(1)
        ]

    def sort(self, rows_Xd: Tensor, chunk: int) -> Tensor:
        """Transpose ``[W, L / K, r, d]`` → ``[L / K, W, r, d]``."""
        return rows_Xd.view(self.world, self.experts, -1, rows_Xd.shape[-1]).transpose(0, 1).flatten(0, 2)

    def unsort(self, rows_Xd: Tensor, chunk: int) -> Tensor:
        """Transpose ``[L / K, W, r, d]`` → ``[W, L / K, r, d]``."""
        return rows_Xd.view(self.experts, self.world, -1, rows_Xd.shape[-1]).transpose(0, 1).flatten(0, 2)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Join K tensors ``[W, L / K * r, d]`` into ``[R, d]``."""
        if len(parts) == 1:
            return parts[0]
        return torch.stack([part.view(self.world, -1, part.shape[-1]) for part in parts], dim=1).flatten(0, 2)


class RaggedExchange(Exchange):
    """Exchange of any number of rows per expert, after an exchange of the counts.

    Construction is collective, and synchronizes with the device once: an all-to-all needs its splits on the host.

    Args:
        counts_E: rows of each expert on this rank, int64; their sum is R.
        group: the expert-parallel group.
        traffic: accumulates bytes and seconds.
        chunks: K; divides L.
    """

    def __init__(self, counts_E: Tensor, group: dist.ProcessGroup, traffic: Traffic, chunks: int = 1):
        world = dist.get_world_size(group=group)
        received_E = torch.empty_like(counts_E)  # [W, L]: rows from each rank for each local expert
        dist.all_to_all_single(received_E, counts_E.contiguous(), group=group)
        self._counts_KL = received_E.view(world, -1).sum(0).chunk(chunks)
        sent_WKL, received_WKL = torch.stack((counts_E, received_E)).view(2, world, chunks, -1).tolist()
        self._sent_WKL, self._received_KWL = sent_WKL, [list(of_chunk) for of_chunk in zip(*received_WKL, strict=True)]
        self.there, self.back = [], []
        for sent_WL, received_WL in zip(zip(*sent_WKL, strict=True), self._received_KWL, strict=True):
            send, receive = ([sum(row_L) for row_L in rows_WL] for rows_WL in (sent_WL, received_WL))
            self.there.append(Transfer(group, traffic, send, receive))
            self.back.append(Transfer(group, traffic, receive, send))

    def counts(self, chunk: int) -> Tensor:
        """Return the rows of each expert of the chunk, summed over ranks, int64 ``[L / K]``."""
        return self._counts_KL[chunk]

    def split(self, rows_Rd: Tensor) -> Sequence[Tensor]:
        """Regroup blocks in the order (rank, chunk) by chunk."""
        return _transposed(rows_Rd, [[sum(row_L) for row_L in row_KL] for row_KL in self._sent_WKL])

    def sort(self, rows_Xd: Tensor, chunk: int) -> Tensor:
        """Reorder blocks from (rank, expert) to (expert, rank)."""
        return torch.cat(_transposed(rows_Xd, self._received_KWL[chunk]))

    def unsort(self, rows_Xd: Tensor, chunk: int) -> Tensor:
        """Reorder blocks from (expert, rank) to (rank, expert)."""
        return torch.cat(_transposed(rows_Xd, list(zip(*self._received_KWL[chunk], strict=True))))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Join blocks grouped by chunk in the order (rank, chunk)."""
        sent_KW = [[sum(row_KL[chunk]) for row_KL in self._sent_WKL] for chunk in range(len(parts))]
        return torch.cat(_transposed(torch.cat(list(parts)), sent_KW))


def _transposed(rows: Tensor, counts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the columns of a matrix of blocks, each concatenated.

    Args:
        rows: the blocks one after another, in row-major order.
        counts: rows of each block.
    """
    blocks = iter(rows.split([count for row in counts for count in row]))
    matrix = [[next(blocks) for _ in row] for row in counts]
    return [torch.cat(column) for column in zip(*matrix, strict=True)]
