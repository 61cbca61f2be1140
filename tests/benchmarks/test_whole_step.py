"""The comparison of whole steps compares equal work, and runs."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.whole_models import CONTENDERS, TOY, make_ours, products
from benchmarks.whole_step import make_batch
from tests.support.launch import python


def test_models_of_a_comparison_have_equal_parameters() -> None:
    weights = {name: sum(p.numel() for p in c.make(TOY).parameters()) for name, c in CONTENDERS.items()}
    assert weights["ours dense GEGLU"] == weights["HF T5 v1.1"]
    assert weights["ours sparse ReLU top-1"] == weights["HF Switch top-1"]
    assert weights["ours sparse GEGLU top-2"] == weights["HF Switch top-1"]  # 3 x 44 = 2 x 66


def test_products_of_the_limit_are_those_of_the_dense_model() -> None:
    counted = 2 * sum(batch * m * k * n for batch, m, k, n in products(TOY, "dense GEGLU"))
    model = make_ours(TOY, "geglu", None).eval()
    # The counter knows attention only in its form for GPUs: as plain products, it is counted.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**make_batch(TOY, "cpu"))
    assert counter.get_total_flops() == counted


@pytest.mark.distributed
def test_a_toy_run_writes_every_row(tmp_path: Path) -> None:
    options = ["--toy", "--no-compile", "--dtypes", "fp32", "--repeats", "1", "--out", str(tmp_path)]
    done = python("-m", "benchmarks.whole_step", *options)
    assert done.returncode == 0, done.stderr
    cell = json.loads((tmp_path / "whole_step_cpu.json").read_text())["cells"]["fp32"]
    assert list(cell["rows"]) == list(CONTENDERS)
    assert all(row["whole"] > 0 and row["over_limit"] > 0 for row in cell["rows"].values())
