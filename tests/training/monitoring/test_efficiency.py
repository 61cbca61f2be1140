"""FLOPs per second of useful work, the peak that they are compared with, memory."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed.comm as dist
import pytest
import torch

from model.config import StMoeConfig
from model.flops import forward_flops
from model.moe.statistics import BINS, SUMS
from tests.support.ranks import run_ranks
from tests.support.small import SMALL_MODEL
from training.engine.loss_terms import LossTerms
from training.engine.shares import reduce_shares
from training.monitoring.monitors.efficiency import Efficiency
from training.monitoring.monitors.peaks import Peak, data_sheet_peak, measured_peak

SERVED = (300, 500)  # rows of experts, by rank


def columns_of_two_ranks() -> list[dict[str, float]]:
    """A sparse model with statistics, the same without, a dense model: two micro-batches in two seconds."""
    found = []
    for experts, observed in ((4, True), (4, False), (0, False)):
        config = StMoeConfig(**SMALL_MODEL | {"num_experts": experts})
        throughput: Any = SimpleNamespace(step_seconds=2.0)
        monitor = Efficiency(config, "cpu", Peak(1e9, "test"), throughput)
        batch = {"input_ids": torch.zeros(4, 32), "labels": torch.zeros(4, 16)}
        monitor.count([batch, batch])
        terms = LossTerms()
        if observed:
            statistics = torch.zeros(2, len(SUMS) + experts + BINS + 1, dtype=torch.float64)
            statistics[:, SUMS.index("served_rows")] = SERVED[dist.get_rank()] / 4
            terms.routers = [statistics, statistics]
        found.append(monitor.columns(*reduce_shares([monitor.share(terms)], "cpu")))
    return found


@pytest.mark.distributed
def test_rates_are_of_the_mean_rank_and_of_served_rows(tmp_path: Path):
    ranks = run_ranks(columns_of_two_ranks, 2, tmp_path)
    assert ranks[0] == ranks[1]
    sparse, unobserved, dense = ranks[0]
    config = StMoeConfig(**SMALL_MODEL)
    flops = 2 * forward_flops(config, 4, 32, 16, expert_rows=0).training()
    flops += forward_flops(config, 0, 0, 0, expert_rows=sum(SERVED) / 2).training()
    assert sparse["model_tflops"] == pytest.approx(flops / 2.0 / 1e12)
    assert sparse["mfu"] == pytest.approx(flops / 2.0 / 1e9)
    assert sparse["peak_tflops"] == 1e-3
    assert "mfu" not in unobserved
    of_dense = 2 * forward_flops(StMoeConfig(**SMALL_MODEL | {"num_experts": 0}), 4, 32, 16).training()
    assert dense["mfu"] == pytest.approx(of_dense / 2.0 / 1e9)
    for row in ranks[0]:
        assert 50e6 < row["memory_bytes"] <= row["peak_memory_bytes"] < 64e9


@pytest.mark.parametrize(
    ("card", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", None),  # another card than A10
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peaks_of_data_sheets(card: str, peak: float | None):
    assert data_sheet_peak(card, torch.bfloat16) == (peak and pytest.approx(peak * 1e12))
    in_float32 = data_sheet_peak(card, torch.float32)
    assert (in_float32 is None) == (peak is None)
    if in_float32 is not None and peak is not None:
        assert 0 < in_float32 < peak * 1e12


def test_a_measured_peak_is_that_of_a_processor_and_draws_no_random_number_of_the_run():
    state = torch.get_rng_state()
    assert 1e8 < measured_peak("cpu", torch.float32) < 1e14
    assert torch.equal(torch.get_rng_state(), state)
