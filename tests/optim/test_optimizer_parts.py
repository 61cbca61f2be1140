"""Schedules and parameter groups."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from optim.build import build_optimizer
from optim.config import OptimizerConfig
from optim.groups import parameter_groups
from optim.parameter import parameter_specs
from optim.schedule import learning_rate_factor, make_schedule


def factors(steps: list[int], total_steps: int = 100, **keys: Any) -> list[float]:
    config = OptimizerConfig.model_validate(keys)
    return [learning_rate_factor(step, config, total_steps) for step in steps]


def test_the_default_is_the_papers_schedule():
    """docs/method.md: lr = 1 / sqrt(max(step, 10k)), 0.01 for the first 10k steps."""
    config = OptimizerConfig()
    for step in (0, 1, 9_999, 10_000, 20_000, 500_000):
        rate = config.learning_rate * learning_rate_factor(step, config, 500_000)
        assert rate == pytest.approx(max(step, 10_000) ** -0.5)


def test_linear_warmup_rises_to_the_peak_without_a_jump():
    values = factors(list(range(6)), warmup="linear", warmup_steps=4)
    assert values == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, (4 / 5) ** 0.5])


def test_decays_end_at_the_floor():
    steps = [0, 20, 60, 100, 200]
    assert factors(steps, schedule="constant", warmup_steps=20) == [1.0] * 5
    assert factors(steps, schedule="linear", warmup_steps=20, floor=0.2) == pytest.approx([1, 1, 0.6, 0.2, 0.2])
    assert factors(steps, schedule="cosine", warmup_steps=20, floor=0.2) == pytest.approx([1, 1, 0.6, 0.2, 0.2])
    quarter = 0.5 * (1 + math.cos(math.pi / 4))
    assert factors([40], schedule="cosine", warmup_steps=20) == pytest.approx([quarter])
    assert factors([40, 60], schedule="linear", warmup_steps=20, decay_steps=60) == pytest.approx([0.5, 0.0])


def test_schedule_steps_with_the_optimizer():
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=2, warmup="linear")
    optimizer = build_optimizer(parameter_specs([("w", nn.Parameter(torch.ones(2, 2)))]), config)
    schedule = make_schedule(optimizer, config, 100)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.5 * (2 / 3) ** 0.5])


def test_defaults_suit_the_optimizer():
    adafactor, adamw = OptimizerConfig(), OptimizerConfig.model_validate({"name": "adamw"})
    assert (adafactor.learning_rate, adafactor.beta1, adafactor.gradient_clipping) == (1e-2, 0.0, 0.0)
    assert (adamw.learning_rate, adamw.beta1, adamw.gradient_clipping, adamw.warmup) == (1e-3, 0.9, 1.0, "linear")
    assert OptimizerConfig.model_validate({"name": "adamw", "gradient_clipping": 0.0}).gradient_clipping == 0.0
    for config in (adafactor, adamw):
        assert OptimizerConfig.model_validate(config.model_dump()) == config


def test_every_parameter_is_in_exactly_one_group_with_its_rate_and_decay():
    matrix, vector, frozen = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))
    frozen.requires_grad_(False)
    embedding, expert = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2, 2))
    expert.allreduce, expert.group_name = False, "ep_size_2"
    parameters = [matrix, vector, frozen, embedding, expert]
    config = OptimizerConfig(name="adamw", weight_decay=0.1, learning_rate=0.5, unit_learning_rate=5.0)
    groups = parameter_groups(parameters, config, embedding)
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(map(id, (matrix, vector, embedding, expert)))
    of = {id(p): group for group in groups for p in group["params"]}
    assert [of[id(p)]["weight_decay"] for p in (matrix, vector, embedding, expert)] == [0.1, 0.0, 0.1, 0.1]
    assert [of[id(p)]["lr"] for p in (matrix, vector, embedding, expert)] == [0.5, 5.0, 5.0, 0.5]
    assert of[id(expert)]["moe"] is True
    assert of[id(expert)]["name"] == "ep_size_2"
    assert not any("moe" in of[id(p)] for p in (matrix, vector, embedding))
    assert len({group["name"] for group in groups}) == len(groups)
    same_rate = parameter_groups(parameters, OptimizerConfig(learning_rate=0.5), embedding)
    assert [(group["lr"], len(group["params"])) for group in same_rate] == [(0.5, 3), (0.5, 1)]
