"""Planned memory against what a card had allocated in a measurement that is kept: ``benchmarks/results``."""

import json

import pytest

from common.project import ROOT
from training.config.run import load_config
from training.planning.cards import find_card
from training.planning.layout import Layout
from training.planning.plan import make_plan

MEASURED = json.loads((ROOT / "benchmarks/results/gpu_nvidia_h100_80gb_hbm3.json").read_text())


@pytest.mark.parametrize("sequences", [4, 32])
def test_an_h100_allocated_what_is_planned(sequences: int):
    # As ``benchmarks.gpu.throughput``: one rank's share of st_moe_l. The peak lies in the optimizer's step with 4
    # sequences, in the backward pass with 32.
    size = str(sequences)
    overrides = [
        "model.num_experts=4", "parallel.expert_parallel_size=1", f"training.global_batch_size={size}",
        f"training.micro_batch_size={size}", f"training.deepspeed_config={ROOT / 'ds_configs' / 'zero1.json'}",
    ]  # fmt: skip
    config = load_config(ROOT / "configs/st_moe_l.yaml", overrides)
    plan = make_plan(config, Layout.of(config, 1), find_card("h100-80gb"))
    measured = MEASURED["steps"]["7"]["values"][f"micro-batch {sequences}"]["peak_bytes"]
    assert plan.peak.total == pytest.approx(measured, rel=0.03)
    assert plan.peak.name == ("optimizer steps" if sequences == 4 else "backward begins")
