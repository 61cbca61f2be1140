"""Properties of every routing, whatever the logits, the padding and the configuration."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.config import StMoeConfig
from model.moe.router import Routing, route
from tests.support.gatings import GATINGS

BY_TOKEN = sorted(GATINGS.keys() - {"expert_choice"})
laws = settings(max_examples=100, deadline=None, derandomize=True)


class Case(NamedTuple):
    routing: Routing
    logits: Tensor
    mask: Tensor
    config: StMoeConfig

    @property
    def probs(self) -> Tensor:
        return self.logits.float().softmax(-1)


@st.composite
def cases(draw: st.DrawFn, kinds: list[str]) -> Case:
    experts = draw(st.integers(2, 6))
    options = GATINGS[draw(st.sampled_from(kinds))]
    if options["gating"] == "top_n":
        options = options | {"second_policy": draw(st.sampled_from(["all", "none", "threshold", "random"]))}
    config = StMoeConfig(
        num_experts=experts,
        top_n=draw(st.integers(1, min(3, experts))),
        train_capacity_factor=draw(st.sampled_from([0.3, 1.0, 1.25, 20.0])),
        min_capacity=draw(st.integers(1, 4)),
        **options,
    )
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 24)))
    logits = torch.randn(*shape, experts, generator=source) * draw(st.sampled_from([0.1, 1.0, 5.0]))
    if draw(st.booleans()):
        logits = logits.round()  # many ties
    mask = torch.rand(shape, generator=source) < draw(st.sampled_from([0.0, 0.6, 1.0]))
    return Case(route(logits, mask, config, training=True, generator=source), logits, mask, config)


@laws
@given(cases(sorted(GATINGS)))
def test_every_gating(case: Case) -> None:
    routing, _, mask, config = case
    groups, size = mask.shape
    assert not routing.kept_NGS[:, ~mask].any(), "padding has no capacity slot"
    assert (routing.gate_NGS <= 1 + 1e-6).all()
    assert (routing.gate_NGS[~routing.kept_NGS] == 0).all()
    combine = routing.dense_combine()
    assert combine.shape == (groups, size, config.num_experts, routing.capacity)
    assert ((combine > 0).sum(1) <= 1).all(), "a slot has at most one token"
    assert ((combine > 0).sum(-1) <= 1).all(), "a token has an expert at most once"
    for g in range(groups):
        for expert in range(config.num_experts):
            kept = routing.kept_NGS[:, g] & (routing.expert_NGS[:, g] == expert)
            assert kept.sum() <= routing.capacity
            assert sorted(routing.position_NGS[:, g][kept].tolist()) == list(range(int(kept.sum())))
    for index in (routing.slots(), routing.ragged_slots()[0], routing.buffer()[1]):
        assert index.is_contiguous(), "kernels would copy it"
    assert torch.isfinite(routing.load_balance_loss)
    assert torch.isfinite(routing.router_z_loss)
    assert routing.dropped_tokens() == (mask & (combine == 0).all(-1).all(-1)).sum()


@laws
@given(cases(sorted(GATINGS)))
def test_layouts_of_every_gating(case: Case) -> None:
    routing, _, mask, config = case
    kept, rows = int(routing.kept_NGS.sum()), config.num_experts * len(mask) * routing.capacity
    slots = routing.slots()
    used = slots[slots < rows]
    assert len(used) == len(used.unique()) == kept
    assert torch.equal(slots < rows, routing.kept_NGS.flatten(1))
    # without gaps: the same rows in the same order, without the empty ones
    ragged, counts = routing.ragged_slots()
    assert sorted(ragged[ragged < kept].tolist()) == list(range(kept))
    assert torch.equal(ragged == kept, slots == rows)
    assert torch.equal(ragged[ragged < kept].argsort(), used.argsort())
    assert counts.tolist() == [int((routing.kept_NGS & (routing.expert_NGS == e)).sum()) for e in range(len(counts))]
    assert len(counts) == config.num_experts


@laws
@given(cases(BY_TOKEN))
def test_token_choice(case: Case) -> None:
    routing, _, mask, config = case
    choices, groups, size = routing.kept_NGS.shape
    assert choices == config.top_n
    chosen = case.probs.gather(-1, routing.expert_NGS.movedim(0, -1)).movedim(-1, 0).double()
    assert torch.equal(chosen, case.probs.topk(choices, dim=-1).values.movedim(-1, 0).double())
    raw = choices == 1 or config.gating == "flaxformer"
    weights = (chosen if raw else chosen / chosen.sum(0))[routing.kept_NGS]
    torch.testing.assert_close(routing.gate_NGS[routing.kept_NGS].double(), weights, rtol=1e-5, atol=1e-7)

    every_request = config.gating == "flaxformer" or config.second_policy == "all"
    for g in range(groups):
        order = list(range(size))  # from left to right
        if config.batch_prioritized:
            order = case.probs[g].max(-1).values.argsort(descending=True, stable=True).tolist()
        for expert in range(config.num_experts):
            asked = (routing.expert_NGS[:, g] == expert) & mask[g]
            kept = asked & routing.kept_NGS[:, g]
            # first choices before second ones, each in the order of tokens: so must the positions run
            positions = [int(routing.position_NGS[n, g, s]) for n in range(choices) for s in order if kept[n, s]]
            assert positions == list(range(len(positions)))
            if (asked[0] & ~kept[0]).any():
                assert kept[0].sum() == routing.capacity, "a first choice is dropped only by first choices"
                assert not kept[1:].any()
            served = [bool(kept[0, s]) for s in order if asked[0, s]]
            assert served == sorted(served, reverse=True), "no token is served after a dropped one"
            if every_request:
                assert kept.sum() == min(int(asked.sum()), routing.capacity)


@laws
@given(cases(["dropless", "dropless_flaxformer"]))
def test_dropless_serves_every_request(case: Case) -> None:
    routing, _, mask, config = case
    assert torch.equal(routing.kept_NGS[0], mask)
    assert routing.dropped_tokens() == 0
    if config.gating == "flaxformer" or config.second_policy == "all":
        assert torch.equal(routing.kept_NGS, mask.expand_as(routing.kept_NGS))
    assert routing.ragged_slots()[1].sum() == routing.kept_NGS.sum()


@laws
@given(cases(["expert_choice"]))
def test_expert_choice(case: Case) -> None:
    routing, _, mask, config = case
    weights = routing.dense_combine().sum(-1)
    assert routing.load_balance_loss == 0
    for g in range(len(mask)):
        for expert in range(config.num_experts):
            taken = (routing.kept_NGS[:, g] & (routing.expert_NGS[:, g] == expert)).any(0)
            assert taken.sum() == min(routing.capacity, int(mask[g].sum())), "loads are equal"
            prob, left = case.probs[g, :, expert], mask[g] & ~taken
            assert torch.equal(weights[g, :, expert], torch.where(taken, prob, 0.0)), "weights are raw probabilities"
            if taken.any() and left.any():
                worst = prob[taken].min()
                assert worst >= prob[left].max()
                tied_taken, tied_left = (taken & (prob == worst)).nonzero(), (left & (prob == worst)).nonzero()
                assert not len(tied_left) or tied_taken.max() < tied_left.min(), "ties go to the left"
    assert (routing.gate_NGS[1:] <= routing.gate_NGS[:-1]).all(), "a token's experts are in order of probability"


@pytest.mark.parametrize("kind", sorted(GATINGS))
def test_routing_is_float32_under_autocast(kind: str) -> None:
    source = torch.Generator().manual_seed(8)
    logits, mask = torch.randn(2, 20, 4, generator=source) * 3, torch.rand(2, 20, generator=source) < 0.8
    config = StMoeConfig(num_experts=4, **GATINGS[kind])
    results = []
    for enabled, x in ((False, logits.bfloat16().float()), (True, logits.bfloat16())):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            generator = torch.Generator().manual_seed(9)
            results.append(route(x, mask, config, training=True, generator=generator))
    exact, routing = results
    for name in ("gate_NGS", "load_balance_loss", "router_z_loss"):
        assert getattr(routing, name).dtype == torch.float32
        assert torch.equal(getattr(routing, name), getattr(exact, name)), name
    assert torch.equal(routing.expert_NGS, exact.expert_NGS)


@pytest.mark.parametrize("kind", sorted(GATINGS))
def test_gates_carry_gradients_of_kept_choices_only(kind: str) -> None:
    source = torch.Generator().manual_seed(10)
    logits = torch.randn(2, 20, 4, generator=source, requires_grad=True)
    config = StMoeConfig(num_experts=4, train_capacity_factor=0.8, **GATINGS[kind])
    routing = route(logits, torch.ones(2, 20), config, training=True, generator=source)
    (grad,) = torch.autograd.grad(routing.gate_NGS.square().sum(), logits)
    served = routing.kept_NGS.any(0)
    assert served.all() == (config.capacity == "dropless")
    assert torch.equal((grad != 0).any(-1), served)
