"""Schedules and parameter groups."""

import pytest
import torch
from torch import nn

from optim.build import build_optimizer
from optim.config import OptimizerConfig
from optim.groups import parameter_groups
from optim.schedule import make_schedule, rsqrt_factor


def test_constant_warmup_is_the_papers_schedule():
    """SPEC: lr = 1 / sqrt(max(step, 10k)), 0.01 for the first 10k steps."""
    for step in (0, 1, 9_999, 10_000, 20_000, 500_000):
        assert 0.01 * rsqrt_factor(step, 10_000, "constant") == pytest.approx(max(step, 10_000) ** -0.5)


def test_linear_warmup_rises_to_the_peak_without_a_jump():
    values = [rsqrt_factor(step, 4, "linear") for step in range(6)]
    assert values == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, (4 / 5) ** 0.5])


def test_schedule_steps_with_the_optimizer():
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=2)
    optimizer = build_optimizer([("w", nn.Parameter(torch.ones(2, 2)))], config)
    schedule = make_schedule(optimizer, config)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.5 * (2 / 3) ** 0.5])


def test_every_parameter_is_in_exactly_one_group_with_its_rate_and_decay():
    matrix, vector, frozen = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))
    frozen.requires_grad_(False)
    embedding, expert = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2, 2))
    expert.allreduce, expert.group_name = False, "ep_size_2"
    named = [("m", matrix), ("v", vector), ("f", frozen), ("s", embedding), ("e", expert)]
    config = OptimizerConfig(weight_decay=0.1, learning_rate=0.5, unit_learning_rate=5.0)
    groups = parameter_groups(named, config, embedding)
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(map(id, (matrix, vector, embedding, expert)))
    of = {id(p): group for group in groups for p in group["params"]}
    assert [of[id(p)]["weight_decay"] for p in (matrix, vector, embedding, expert)] == [0.1, 0.0, 0.1, 0.1]
    assert [of[id(p)]["lr"] for p in (matrix, vector, embedding, expert)] == [0.5, 5.0, 5.0, 0.5]
    assert of[id(expert)]["moe"] is True
    assert of[id(expert)]["name"] == "ep_size_2"
    assert not any("moe" in of[id(p)] for p in (matrix, vector, embedding))
    same_rate = parameter_groups(named, OptimizerConfig(learning_rate=0.5), embedding)
    assert {group["lr"] for group in same_rate} == {0.5}
