"""Top-n gating against a slow reference in plain Python floats, and hand-worked cases.

Reference order of events (docs/method.md, Router, capacity and losses): softmax, best experts, gates, requests,
capacity slots by choice, then token.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from model.capacity import expert_capacity, group_tokens
from model.config import StMoeConfig
from model.router import route


def make_config(**options: Any) -> StMoeConfig:
    return StMoeConfig(**{"num_experts": 4, "top_n": 2, "second_policy": "all", "min_capacity": 1, **options})


def slow_softmax(row: list[float]) -> list[float]:
    top = max(row)
    exponentials = [math.exp(x - top) for x in row]
    return [x / sum(exponentials) for x in exponentials]


def slow_route(
    logits: list[list[list[float]]],
    mask: list[list[bool]],
    config: StMoeConfig,
    capacity: int,
    draws: list[list[list[float]]],
) -> tuple[Tensor, float, float]:
    """Combine tensor ``[G, S, E, C]`` and both losses, one group, choice and token at a time."""
    groups, size, experts = len(logits), len(logits[0]), config.num_experts
    combine = torch.zeros(groups, size, experts, capacity, dtype=torch.float64)
    balances, squares = [], []
    for g in range(groups):
        probs = [slow_softmax(row) for row in logits[g]]
        ranking = [sorted(range(experts), key=lambda e: (-probs[s][e], e)) for s in range(size)]
        used = [0] * experts
        for n in range(config.top_n):
            for s in range(size):
                expert = ranking[s][n]
                chosen = sum(probs[s][e] for e in ranking[s][: config.top_n])
                gate = probs[s][expert] / (chosen if config.top_n > 1 else 1.0)
                wanted = (
                    n == 0
                    or {
                        "all": True,
                        "none": False,
                        "threshold": gate > config.second_threshold,
                        "random": draws[max(n - 1, 0)][g][s] < min(1.0, gate / config.second_threshold),
                    }[config.second_policy]
                )
                if mask[g][s] and wanted:
                    if used[expert] < capacity:
                        combine[g, s, expert, used[expert]] = gate
                    used[expert] += 1
        real = [s for s in range(size) if mask[g][s]]
        fraction = [sum(ranking[s][0] == e for s in real) / len(real) for e in range(experts)]
        mean = [sum(probs[s][e] for s in real) / len(real) for e in range(experts)]
        balances.append(experts * sum(f * p for f, p in zip(fraction, mean, strict=True)))
        squares += [math.log(sum(math.exp(x) for x in logits[g][s])) ** 2 for s in real]
    return combine, sum(balances) / groups, sum(squares) / len(squares)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("factor", [0.4, 1.25, 9.0])
@pytest.mark.parametrize("top_n", [1, 2, 3])
@pytest.mark.parametrize("policy", ["all", "none", "threshold", "random"])
def test_route_equals_slow_reference(policy: str, top_n: int, factor: float, padded: bool) -> None:
    groups, size = 3, 40
    config = make_config(num_experts=5, top_n=top_n, second_policy=policy, train_capacity_factor=factor)
    source = torch.Generator().manual_seed(top_n)
    # A shared offset makes some experts popular; without it no queue would overflow at factor 1.25.
    logits = torch.randn(groups, size, 5, generator=source) * 1.5 + torch.tensor([1.0, 0.0, 0.5, -0.5, 0.0])
    mask = torch.rand(groups, size, generator=source) < 0.7 if padded else torch.ones(groups, size, dtype=torch.bool)
    draws = torch.rand(max(top_n - 1, 1), groups, size, generator=torch.Generator().manual_seed(7))

    routing = route(logits, mask, config, training=True, generator=torch.Generator().manual_seed(7))
    capacity = max(min(size, int(size * factor / 5)), 1)
    combine, balance, z = slow_route(logits.tolist(), mask.tolist(), config, capacity, draws.tolist())
    assert routing.capacity == capacity
    assert routing.gate_NGS.dtype == torch.float32
    torch.testing.assert_close(routing.dense_combine().double(), combine, rtol=0, atol=1e-6)
    assert routing.load_balance_loss.item() == pytest.approx(balance, abs=1e-6)
    assert routing.router_z_loss.item() == pytest.approx(z, abs=1e-6)
    dropped = sum(bool(mask[g, s]) and not combine[g, s].any() for g in range(groups) for s in range(size))
    assert routing.dropped_tokens().item() == dropped
    if factor == 0.4:
        assert dropped > 0


def test_random_policy_has_the_stated_probability() -> None:
    # Two experts with probabilities 0.9 and 0.1: the second is requested with probability 0.1 / 0.2 = 0.5.
    logits = torch.tensor([0.9, 0.1]).log().expand(1, 20_000, 2)
    config = make_config(num_experts=2, second_policy="random", eval_capacity_factor=100.0)
    for training in (False, True):
        config.train_capacity_factor = config.eval_capacity_factor
        routing = route(logits, torch.ones(1, 20_000), config, training=training)
        assert routing.kept_NGS[0].all()
        assert routing.kept_NGS[1].float().mean().item() == pytest.approx(0.5, abs=0.015)  # four standard errors
    # From 0.2 on, always.
    logits = torch.tensor([0.79, 0.21]).log().expand(1, 2000, 2)
    assert route(logits, torch.ones(1, 2000), config, training=False).kept_NGS.all()


def test_hand_worked_case() -> None:
    # Four tokens, three experts, top 2, C = int(4 * 0.75 / 3) = 1; probabilities are given, logits are their logs.
    probs = torch.tensor([[[0.6, 0.3, 0.1], [0.5, 0.2, 0.3], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]]])
    mask = torch.tensor([[True, True, True, False]])
    config = make_config(num_experts=3, train_capacity_factor=0.75)
    routing = route(probs.log() + 1.0, mask, config, training=True)
    # First choices: token 0 takes expert 0; token 1 is late for it; token 2 takes expert 1; token 3 is padding.
    # Second choices: token 0 is late for expert 1; token 1 takes expert 2; token 2 (tie 0.1: lower index) is late
    # for expert 0.
    expected = torch.zeros(1, 4, 3, 1)
    expected[0, 0, 0, 0] = 0.6 / 0.9
    expected[0, 1, 2, 0] = 0.3 / 0.8
    expected[0, 2, 1, 0] = 0.8 / 0.9
    torch.testing.assert_close(routing.dense_combine(), expected, rtol=0, atol=1e-6)
    # f = (2/3, 1/3, 0); P = (1.2, 1.3, 0.5) / 3; L_B = 3 * (2.4 + 1.3) / 9. Every logsumexp is 1.
    assert routing.load_balance_loss.item() == pytest.approx(3.7 / 3, abs=1e-6)
    assert routing.router_z_loss.item() == pytest.approx(1.0, abs=1e-6)
    assert routing.dropped_tokens().item() == 0
    # Rows of the buffer [E, G, C]: expert e's only row is e; 3 means none.
    assert routing.slots().tolist() == [[0, 3, 1, 3], [3, 2, 3, 3]]


@pytest.mark.parametrize(
    ("size", "training", "capacity"), [(2048, True, 80), (456, True, 17), (2048, False, 128), (456, False, 28)]
)
def test_capacity_of_the_paper(size: int, training: bool, capacity: int) -> None:
    for top_n in (1, 2, 3):  # not multiplied by n
        config = StMoeConfig(num_experts=32, top_n=top_n)
        assert expert_capacity(config, size, training=training) == capacity


def test_capacity_bounds() -> None:
    config = StMoeConfig(num_experts=32)
    assert expert_capacity(config, 64, training=True) == 4  # int(2.5) = 2 is raised to the minimum
    assert expert_capacity(make_config(num_experts=32, min_capacity=9), 64, training=True) == 9
    # The minimum is applied last (MTF), so a group of 2 tokens still has 4 capacity slots.
    assert expert_capacity(config, 2, training=True) == 4
    # 32 * 100 / 4 = 800 slots for 32 tokens are cut to 32.
    assert expert_capacity(make_config(train_capacity_factor=100.0), 32, training=True) == 32


def test_group_tokens() -> None:
    table = [(2048, 2048, 2048), (4096, 2048, 2048), (456, 2048, 456), (1000, 300, 250), (997, 300, 1), (12, 5, 4)]
    for tokens, limit, expected in table:
        assert group_tokens(tokens, limit) == expected
    for tokens in range(1, 60):
        for limit in range(1, 60):
            assert group_tokens(tokens, limit) == max(d for d in range(1, limit + 1) if tokens % d == 0)


def test_top_1_uses_the_raw_probability() -> None:
    logits = torch.tensor([[[2.0, 0.0, 0.0, 1.0]]])
    routing = route(logits, torch.ones(1, 1), make_config(top_n=1), training=True)
    assert routing.gate_NGS.item() == pytest.approx(math.exp(2) / (math.exp(2) + 2 + math.e), abs=1e-6)


def test_ties_go_to_the_lower_index() -> None:
    logits = torch.tensor([[[1.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0], [5.0, 2.0, 5.0, 2.0]]])
    routing = route(logits, torch.ones(1, 3), make_config(top_n=3), training=True)
    assert routing.expert_NGS[:, 0].T.tolist() == [[1, 2, 3], [0, 1, 2], [0, 2, 1]]


@pytest.mark.parametrize(
    "options", [{}, {"gating": "flaxformer"}, {"batch_prioritized": True}, {"capacity": "dropless"}]
)
@pytest.mark.parametrize("experts", [2, 7, 64])
def test_uniform_router_has_balance_loss_1(experts: int, options: dict[str, Any]) -> None:
    mask = torch.ones(3, 24, dtype=torch.bool)
    mask[0, 5:] = False
    mask[2, ::3] = False
    logits = torch.full((3, 24, experts), 0.7)
    config = make_config(**{"num_experts": experts, "second_policy": "random", **options})
    assert route(logits, mask, config, training=True).load_balance_loss.item() == pytest.approx(1.0, abs=1e-6)


def test_gates_carry_gradients_to_the_logits() -> None:
    logits = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    routing = route(logits, torch.ones(1, 6), make_config(train_capacity_factor=9.0), training=True)
    weight = torch.arange(1.0, 7.0)
    (grad,) = torch.autograd.grad((routing.gate_NGS[0, 0] * weight).sum(), logits)
    # gate_1 = p_1 / (p_1 + p_2) is the logistic function of x_1 - x_2: derivative gate_1 * gate_2, others exactly 0.
    top = logits.detach().double().topk(2, dim=-1)
    gate = (top.values[0, :, 0] - top.values[0, :, 1]).sigmoid()
    slope = gate * (1 - gate) * weight.double()
    expected = torch.zeros(1, 6, 4, dtype=torch.float64).scatter(
        -1, top.indices, torch.stack((slope, -slope), -1)[None]
    )
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-6)
