"""Planned memory against what a card had allocated in a measurement that is kept: ``benchmarks/results``."""

import json

import pytest

from benchmarks.gpu.planned.memory import MODELS
from common.project import ROOT
from training.config.run import load_config
from training.planning.activations import activations_of
from training.planning.cards import find_card
from training.planning.layout import Layout
from training.planning.plan import make_plan, moments_of
from training.planning.states import states_of

H200 = json.loads((ROOT / "benchmarks/results/gpu_nvidia_h200.json").read_text())
MEASURED = json.loads((ROOT / "benchmarks/results/gpu_nvidia_h100_80gb_hbm3.json").read_text())


@pytest.mark.parametrize("sequences", [4, 32])
def test_an_h100_allocated_what_is_planned(sequences: int):
    # As ``benchmarks.gpu.throughput``: one rank's share of st_moe_l. The peak lies where gradients are reduced with 4
    # sequences, at the loss with 32.
    size = str(sequences)
    overrides = [
        "model.num_experts=4", "parallel.expert_parallel_size=1", f"training.global_batch_size={size}",
        f"training.micro_batch_size={size}", f"training.deepspeed_config={ROOT / 'ds_configs' / 'zero1.json'}",
    ]  # fmt: skip
    config = load_config(ROOT / "configs/st_moe_l.yaml", overrides)
    plan = make_plan(config, Layout.of(config, 1), find_card("h100-80gb"))
    measured = MEASURED["steps"]["7"]["values"][f"micro-batch {sequences}"]["peak_bytes"]
    assert plan.peak.total == pytest.approx(measured, rel=0.03)
    assert plan.peak.name == ("backward ends" if sequences == 4 else "backward begins")


@pytest.mark.parametrize(("name", "overrides"), MODELS.items())
def test_an_h200_allocated_what_is_planned_at_each_time_of_a_step(name: str, overrides: tuple[str, ...]):
    # As ``benchmarks.gpu.planned.memory``: one rank, ZeRO 1.
    one = [
        "parallel.expert_parallel_size=1", "training.micro_batch_size=4", "training.global_batch_size=4",
        f"training.deepspeed_config={ROOT / 'ds_configs' / 'zero1.json'}",
    ]  # fmt: skip
    config = load_config(ROOT / "configs" / f"{name}.yaml", [*one, *overrides])
    layout = Layout.of(config, 1)
    *backward, step = moments_of(states_of(config, layout), activations_of(config, layout))
    measured = H200["steps"]["11"]["values"][f"{name}, measured bytes"]
    assert max(moment.total for moment in backward) == pytest.approx(measured["backward"], rel=0.03)
    assert step.total == pytest.approx(measured["step"], rel=0.02)
