"""Rows that are exchanged between ranks reach the right experts, come back, and are counted."""

from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import pytest
import torch
from torch import Tensor, nn

from model.config import StMoeConfig
from model.initialization import initialize_weights
from parallel.all_to_all import Traffic
from parallel.config import ParallelConfig
from parallel.exchange import EqualExchange, Exchange, RaggedExchange
from parallel.layer import sparse_factory, take_traffic
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.distributed

EXPERTS, WIDTH = 6, 3


def _counts(rank: int, equal: bool) -> list[int]:
    return [2] * EXPERTS if equal else [[3, 0, 1, 2, 0, 5], [0, 0, 4, 1, 0, 0], [0] * EXPERTS][rank]


def _rows(rank: int, counts: list[int]) -> Tensor:
    """Row i of expert e on a rank holds (rank, e, i)."""
    rows = [[rank, e, i] for e, count in enumerate(counts) for i in range(count)]
    return torch.tensor(rows, dtype=torch.float32).view(-1, WIDTH)


def _there_and_back(equal: bool, chunks: int) -> dict[str, Any]:
    """Every expert multiplies its rows by its global number + 1; what each expert got, and the bytes each way."""
    rank, world = dist.get_rank(), dist.get_world_size()
    group, traffic, local = dist.get_world_group(), Traffic(), EXPERTS // world
    counts = _counts(rank, equal)
    rows = _rows(rank, counts).requires_grad_()
    exchange: Exchange = (
        EqualExchange(local, group, traffic, chunks)
        if equal
        else RaggedExchange(torch.tensor(counts), group, traffic, chunks)
    )
    got: list[Tensor] = []
    received: list[int] = []

    def run(here: Tensor, counts_of_chunk: Tensor | None) -> Tensor:
        got.append(here.detach())
        received.extend([] if counts_of_chunk is None else counts_of_chunk.tolist())
        return here * (here[:, 1:2].detach() + 1)

    back = exchange.through(rows, [run] * chunks)
    forward_bytes, seconds = traffic.take()
    assert seconds > 0
    expected = [
        _rows(source, _counts(source, equal))[_rows(source, _counts(source, equal))[:, 1] == expert]
        for expert in range(rank * local, (rank + 1) * local)
        for source in range(world)
    ]
    assert torch.equal(torch.cat(got), torch.cat(expected))
    weight = torch.randn(back.shape, generator=torch.Generator().manual_seed(rank))
    (back * weight).sum().backward()
    factor = rows.detach()[:, 1:2] + 1
    assert torch.equal(back, rows * factor)
    assert rows.grad is not None
    assert torch.equal(rows.grad, weight * factor)
    return {"forward": forward_bytes, "backward": traffic.take()[0], "again": traffic.take(), "received": received}


@pytest.mark.parametrize("chunks", [1, 2])
def test_equal_rows(chunks: int, tmp_path: Path):
    for rank in run_ranks(_there_and_back, 3, tmp_path, True, chunks):
        one_way = EXPERTS * 2 * WIDTH * 4
        assert rank == {"forward": 2 * one_way, "backward": 2 * one_way, "again": (0, 0.0), "received": []}


@pytest.mark.parametrize("chunks", [1, 2])
def test_ragged_rows_also_with_a_rank_that_has_none(chunks: int, tmp_path: Path):
    received = [[3, 0], [5, 3], [0, 5]]
    for rank, result in enumerate(run_ranks(_there_and_back, 3, tmp_path, False, chunks)):
        there, back = sum(_counts(rank, equal=False)), sum(received[rank])
        both_ways = (there + back) * WIDTH * 4
        assert result == {
            "forward": both_ways, "backward": both_ways, "again": (0, 0.0), "received": received[rank]
        }  # fmt: skip


def _layer(chunks: int, capacity: str) -> dict[str, Any]:
    """Two layers' outputs, gradients and bytes."""
    config = StMoeConfig(d_model=16, d_ff=24, num_experts=8, group_size=32, capacity=capacity)
    make = sparse_factory(ParallelConfig(expert_parallel_size=2, all_to_all_chunks=chunks))
    layers = nn.ModuleList(make(config, decoder=False) for _ in range(2))
    initialize_weights(layers, config, seed=0)
    x = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(dist.get_rank())).requires_grad_()
    mask = torch.ones(4, 16, dtype=torch.bool)
    torch.manual_seed(dist.get_rank())
    rows: list[int] = []
    y = x
    for layer in layers.train():
        layer.get_submodule("experts").register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
        y, _ = layer(y, mask)
    forward_bytes, _ = take_traffic(layers)
    y.square().sum().backward()
    backward_bytes, _ = take_traffic(layers)
    gradients = [p.grad for p in (x, *layers.parameters())]
    return {"y": y.detach(), "gradients": gradients, "rows": sum(rows), "bytes": (forward_bytes, backward_bytes)}


@pytest.mark.parametrize("capacity", ["factor", "dropless"])
def test_the_number_of_chunks_changes_no_number(capacity: str, tmp_path: Path):
    whole, *others = (run_ranks(_layer, 2, tmp_path, chunks, capacity) for chunks in (1, 2, 4))
    for other in others:
        for a, b in zip(whole, other, strict=True):
            assert torch.equal(a["y"], b["y"])
            for left, right in zip(a["gradients"], b["gradients"], strict=True):
                assert torch.equal(left, right)
            assert a["bytes"] == b["bytes"]
    for rank in whole:
        assert rank["y"].abs().max() > 0
    row = 16 * 4  # bytes
    if capacity == "factor":  # two layers, there and back, of E * G * C rows: C = int(32 * 1.25 / 8)
        assert all(rank["bytes"] == (2 * 2 * 8 * 2 * 5 * row,) * 2 for rank in whole)
    else:  # exactly the routed rows: over both ranks, what is sent there is what comes back
        forward = sum(rank["bytes"][0] for rank in whole)
        assert forward == sum(rank["bytes"][1] for rank in whole) == 2 * row * sum(rank["rows"] for rank in whole)
