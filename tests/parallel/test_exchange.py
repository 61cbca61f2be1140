"""Rows that are exchanged between ranks reach the right experts, come back, and are counted."""

from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import torch
from torch import Tensor

from parallel.all_to_all import Traffic
from parallel.exchange import EqualExchange, RaggedExchange
from tests.support.ranks import run_ranks

EXPERTS, WIDTH = 6, 3


def _counts(rank: int, equal: bool) -> list[int]:
    return [2] * EXPERTS if equal else [[3, 0, 1, 2, 0, 5], [0, 0, 4, 1, 0, 0], [0] * EXPERTS][rank]


def _rows(rank: int, counts: list[int]) -> Tensor:
    """Row i of expert e on a rank holds (rank, e, i)."""
    rows = [[rank, e, i] for e, count in enumerate(counts) for i in range(count)]
    return torch.tensor(rows, dtype=torch.float32).view(-1, WIDTH)


def _there_and_back(equal: bool) -> dict[str, Any]:
    rank, world = dist.get_rank(), dist.get_world_size()
    group, traffic, local = dist.get_world_group(), Traffic(), EXPERTS // world
    counts = _counts(rank, equal)
    rows = _rows(rank, counts).requires_grad_()
    exchange: EqualExchange | RaggedExchange = (
        EqualExchange(group, traffic, local) if equal else RaggedExchange(torch.tensor(counts), group, traffic)
    )
    here = exchange.to_experts(rows)
    expected = [
        _rows(source, _counts(source, equal))[_rows(source, _counts(source, equal))[:, 1] == expert]
        for expert in range(rank * local, (rank + 1) * local)
        for source in range(world)
    ]
    torch.testing.assert_close(here, torch.cat(expected), rtol=0, atol=0)
    back = exchange.from_experts(here * (rank + 2))
    forward_bytes, seconds = traffic.take()
    assert seconds > 0
    weight = torch.randn(back.shape, generator=torch.Generator().manual_seed(rank))
    (back * weight).sum().backward()
    owner = rows.detach()[:, 1:2].div(local, rounding_mode="floor")  # the rank that multiplied the row
    torch.testing.assert_close(back, rows * (owner + 2), rtol=0, atol=0)
    torch.testing.assert_close(rows.grad, weight * (owner + 2), rtol=0, atol=0)
    received = None if exchange.counts_L is None else exchange.counts_L.tolist()
    return {"forward": forward_bytes, "backward": traffic.take()[0], "again": traffic.take(), "received": received}


def test_equal_rows(tmp_path: Path):
    for rank in run_ranks(_there_and_back, 3, tmp_path, True):
        one_way = EXPERTS * 2 * WIDTH * 4
        assert rank == {"forward": 2 * one_way, "backward": 2 * one_way, "again": (0, 0.0), "received": None}


def test_ragged_rows_also_with_a_rank_that_has_none(tmp_path: Path):
    received = [[3, 0], [5, 3], [0, 5]]
    for rank, result in enumerate(run_ranks(_there_and_back, 3, tmp_path, False)):
        there, back = sum(_counts(rank, equal=False)), sum(received[rank])
        both_ways = (there + back) * WIDTH * 4
        assert result == {
            "forward": both_ways, "backward": both_ways, "again": (0, 0.0), "received": received[rank]
        }  # fmt: skip
