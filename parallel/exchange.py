"""Rows of all experts on this rank → rows of this rank's experts from all ranks, and back, in chunks of experts.

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
    """What brings rows to their experts' rank and back: two transfers for each chunk of its experts."""

    there: Sequence[Transfer]
    back: Sequence[Transfer]

    def through(self, rows_Rd: Tensor, experts: Sequence[Run]) -> Tensor:
        """Run the experts of all ranks on the rows of all ranks: ``[R, d]`` → ``[R, d]``.

        While a chunk's experts compute, later chunks are on their way to them and earlier ones on their way back; so
        too in the backward pass, which autograd runs in the reverse of this order on every rank.

        Args:
            rows_Rd: sorted by global expert.
            experts: of each chunk, what maps its rows ``[X, d]``, sorted by expert, and counts to ``[X, d]``.
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
        """Rows of each expert of the chunk; None: equal."""

    @abstractmethod
    def split(self, rows_Rd: Tensor) -> Sequence[Tensor]:
        """What is sent for each chunk, sorted by rank and, within it, by expert."""

    @abstractmethod
    def sort(self, rows_Xd: Tensor, chunk: int) -> Tensor:
        """From sorted by rank to sorted by expert."""

    @abstractmethod
    def unsort(self, rows_Xd: Tensor, chunk: int) -> Tensor:
        """The inverse of ``sort``."""

    @abstractmethod
    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of ``split``."""


class EqualExchange(Exchange):
    """Every expert has as many rows as any other: R = E * r."""

    def __init__(self, num_local: int, group: dist.ProcessGroup, traffic: Traffic, chunks: int = 1):
        self.world, self.experts = dist.get_world_size(group=group), num_local // chunks
        self.there, self.back = ([Transfer(group, traffic) for _ in range(chunks)] for _ in range(2))

    def counts(self, chunk: int) -> None:
        """Equal."""

    def split(self, rows_Rd: Tensor) -> Sequence[Tensor]:
        """``[R, d]`` as ``[W, K, L / K * r, d]``; one chunk is sent as it is."""
        if len(self.there) == 1:
            return [rows_Rd]
        return [
            part.flatten(0, 1) for part in rows_Rd.view(self.world, len(self.there), -1, rows_Rd.shape[-1]).unbind(1)
        ]

    def sort(self, rows_Xd: Tensor, chunk: int) -> Tensor:
        """``[W, L / K, r, d]`` → ``[L / K, W, r, d]``."""
        return rows_Xd.view(self.world, self.experts, -1, rows_Xd.shape[-1]).transpose(0, 1).flatten(0, 2)

    def unsort(self, rows_Xd: Tensor, chunk: int) -> Tensor:
        """``[L / K, W, r, d]`` → ``[W, L / K, r, d]``."""
        return rows_Xd.view(self.experts, self.world, -1, rows_Xd.shape[-1]).transpose(0, 1).flatten(0, 2)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """``K x [W, L / K * r, d]`` → ``[R, d]``."""
        if len(parts) == 1:
            return parts[0]
        return torch.stack([part.view(self.world, -1, part.shape[-1]) for part in parts], dim=1).flatten(0, 2)


class RaggedExchange(Exchange):
    """Any number of rows for each expert, agreed upon by an exchange of counts first.

    Collective on construction. Waits for the device once, since a collective needs its splits on the host.

    Args:
        counts_E: rows of each expert on this rank, int64; they add up to R.
        group, traffic: of the expert-parallel ranks.
        chunks: divides L.
    """

    def __init__(self, counts_E: Tensor, group: dist.ProcessGroup, traffic: Traffic, chunks: int = 1):
        world = dist.get_world_size(group=group)
        received_E = torch.empty_like(counts_E)  # [W, L]: from each rank, for each local expert
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
        """Of all ranks together."""
        return self._counts_KL[chunk]

    def split(self, rows_Rd: Tensor) -> Sequence[Tensor]:
        """Blocks in the order rank, chunk → for each chunk its blocks of all ranks."""
        return _transposed(rows_Rd, [[sum(row_L) for row_L in row_KL] for row_KL in self._sent_WKL])

    def sort(self, rows_Xd: Tensor, chunk: int) -> Tensor:
        """Blocks in the order rank, expert → expert, rank."""
        return torch.cat(_transposed(rows_Xd, self._received_KWL[chunk]))

    def unsort(self, rows_Xd: Tensor, chunk: int) -> Tensor:
        """Blocks in the order expert, rank → rank, expert."""
        return torch.cat(_transposed(rows_Xd, list(zip(*self._received_KWL[chunk], strict=True))))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """For each chunk its blocks of all ranks → blocks in the order rank, chunk."""
        sent_KW = [[sum(row_KL[chunk]) for row_KL in self._sent_WKL] for chunk in range(len(parts))]
        return torch.cat(_transposed(torch.cat(list(parts)), sent_KW))


def _transposed(rows: Tensor, counts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Rows in blocks, row-major in ``counts`` → the blocks of each column, together."""
    blocks = iter(rows.split([count for row in counts for count in row]))
    matrix = [[next(blocks) for _ in row] for row in counts]
    return [torch.cat(column) for column in zip(*matrix, strict=True)]
