"""Triton kernels against torch operations in float64 and the paths that they replace.

On a GPU: python -m pytest -m gpu tests/model/test_kernels.py. Without one, Triton 3.6 interprets them with NumPy < 2.4:
pip install --target DIR --no-deps triton numpy==2.2.6; TRITON_INTERPRET=1 PYTHONPATH=DIR python -m pytest FILE
"""

import os
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from model.config import StMoeConfig
from model.kernels import available
from model.layers import geglu as geglu_layer
from model.moe import dispatch, router, router_product
from model.moe.layer import SparseFeedForward
from model.moe.router import route

CUDA = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu] * CUDA
if not CUDA and not os.environ.get("TRITON_INTERPRET"):
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton")
DEVICE = "cuda" if CUDA else "cpu"
# Relative, of results rounded once; the interpreter rounds to bf16 by truncation.
ERRORS = {torch.float32: 2e-6, torch.bfloat16: 4e-3 if CUDA else 8e-3}


works = available._works  # the fixture replaces it


@pytest.fixture(autouse=True)
def _kernels_run() -> Iterator[None]:
    """Let the kernels run on tensors of the interpreter, which are on the CPU."""
    if CUDA:
        assert available.usable(torch.zeros(1, device=DEVICE))
        yield
        return
    places = (geglu_layer, dispatch, router_product, router_module())
    with patch.multiple(available, _works=lambda _: True):
        patches = [patch.object(place, "usable", lambda _: available._allowed) for place in places]
        for one in patches:
            one.start()
        yield
        for one in patches:
            one.stop()


def router_module() -> Any:
    from model.moe import token_choice_kernels

    assert router.can_route is token_choice_kernels.can_route
    return token_choice_kernels


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def test_the_trial_of_triton_succeeds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert works.__wrapped__(torch.device(DEVICE))


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("shape", [(3, 7), (9, 1100), (1, 1)])
@pytest.mark.parametrize("halves", [False, True])
def test_geglu(dtype: torch.dtype, shape: tuple[int, int], halves: bool):
    both = 3 * random(shape[0], 2 * shape[1], dtype=dtype)
    first, second = both.chunk(2, dim=-1)
    if not halves:
        first, second = first.contiguous(), second.contiguous()
    grad = random(*shape, seed=2, dtype=dtype)
    exact = [t.double().requires_grad_() for t in (first, second)]
    expected = torch.nn.functional.gelu(exact[0], approximate="tanh") * exact[1]
    expected.backward(grad.double())
    hidden = geglu_layer.hidden_of(first, second)
    assert hidden.is_contiguous()
    assert error(hidden, expected.detach()) < ERRORS[dtype]
    grads, again = torch.full_like(both, float("nan")).chunk(2, dim=-1), torch.empty_like(hidden)
    geglu_layer.differentiate(first, second, grad.clone(), *grads, hidden=again)
    assert torch.equal(again, hidden)
    for found, leaf in zip(grads, exact, strict=True):
        assert leaf.grad is not None
        assert error(found, leaf.grad) < ERRORS[dtype]
    in_place, other = grad.clone(), torch.empty_like(grad)
    geglu_layer.differentiate(first, second, in_place, in_place, other)
    assert torch.equal(in_place, grads[0])
    assert torch.equal(other, grads[1])


def test_geglu_refuses_strides_that_it_does_not_read():
    plain, across = random(4, 6), random(6, 4).t()
    for first, second in ((plain, across), (across, across), (plain, random(4, 12)[:, :6])):
        with pytest.raises(ValueError, match="strides"):
            available.kernels("geglu").geglu(first, second)
        with pytest.raises(ValueError, match="strides"):
            available.kernels("geglu").geglu_backward(plain, plain, plain.clone(), first, second, None)
    for grad, hidden in ((across, None), (plain, across)):
        with pytest.raises(ValueError, match="contiguous"):
            available.kernels("geglu").geglu_backward(plain, plain, grad, plain.clone(), plain.clone(), hidden)


def across(tensor: Tensor) -> Tensor:
    """Return the same values with the strides of a transposed matrix, as ``movedim`` leaves them."""
    return tensor.t().contiguous().t()


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize(("choices", "strided"), [(1, False), (2, False), (2, True), (9, False)])
def test_dispatch_and_combine(dtype: torch.dtype, choices: int, strided: bool):
    tokens, rows, width = 21, 70, 72
    generator = torch.Generator().manual_seed(choices)
    order = torch.randperm(rows, generator=generator)[: choices * tokens]
    order = torch.cat([order, torch.full((choices * tokens - len(order),), rows)])
    slot_NT = order.view(choices, tokens).to(DEVICE)
    slot_NT[:, ::5] = rows  # dropped
    slot_NT[0, 1::4] = rows
    token_R = dispatch.tokens_of_rows(slot_NT, rows)
    gate_NT = random(choices, tokens, seed=5).abs()
    layout = across if strided else Tensor.contiguous
    slot_NT = layout(slot_NT)
    assert slot_NT.is_contiguous() is not strided

    def run() -> list[Tensor]:
        x = layout(random(tokens, width, dtype=dtype)).requires_grad_()
        y = layout(random(rows, width, seed=1, dtype=dtype)).requires_grad_()
        gate = layout(gate_NT.clone()).requires_grad_()
        sent = dispatch.dispatch(x, slot_NT, token_R)
        sent.backward(layout(random(rows, width, seed=2, dtype=dtype)))
        combined = dispatch.combine(y, gate, slot_NT, token_R)
        combined.backward(layout(random(tokens, width, seed=3, dtype=dtype)))
        found = [sent, x.grad, combined, y.grad, gate.grad]
        return [t.detach() for t in found if t is not None]

    found = run()
    with available.torch_only():
        expected = run()
    assert len(found) == len(expected) == 5
    assert torch.equal(found[0], expected[0])
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert error(a, b.double()) < (2 if dtype == torch.bfloat16 else 1) * ERRORS[dtype]
    none = torch.full_like(slot_NT, rows)
    nothing = dispatch.combine(random(rows, width, dtype=dtype), gate_NT, none, dispatch.tokens_of_rows(none, rows))
    assert (nothing == 0).all()


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(("tokens", "width", "experts"), [(130, 96, 5), (64, 64, 16), (5, 24, 3), (300, 40, 33)])
def test_router_product(tokens: int, width: int, experts: int, strided: bool):
    layout = across if strided else Tensor.contiguous
    x, weight = layout(random(tokens, width, dtype=torch.bfloat16)), layout(random(experts, width, seed=1))
    grad = layout(random(tokens, experts, seed=2))
    leaves, exact = (
        [t.clone().requires_grad_() for t in (x, weight)],
        [t.double().requires_grad_() for t in (x, weight)],
    )
    found = router_product.router_product(*leaves)
    found.backward(grad)
    expected = exact[0] @ exact[1].t()
    expected.backward(grad.double())
    found, expected = found.detach(), expected.detach()
    assert found.dtype == torch.float32
    assert error(found, expected) < 2e-6
    for leaf, of, limit in zip(leaves, exact, (ERRORS[torch.bfloat16], 2e-6), strict=True):
        assert leaf.grad is not None
        assert of.grad is not None
        assert error(leaf.grad, of.grad) < limit


ROUTINGS: dict[str, dict[str, Any]] = {
    "random": {},
    "all": {"second_policy": "all"},
    "threshold": {"second_policy": "threshold"},
    "none": {"second_policy": "none"},
    "top-1": {"top_n": 1},
    "top-3": {"top_n": 3, "num_experts": 5},
    "flaxformer": {"gating": "flaxformer"},
    "large groups": {"group_size": 600},
}


@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("masked", [False, True])
def test_routing(name: str, masked: bool):
    config = StMoeConfig(**{"num_experts": 6, "group_size": 100, "min_capacity": 1} | ROUTINGS[name])
    groups, size = 3, config.group_size
    mask = torch.ones(groups, size, dtype=torch.bool, device=DEVICE)
    if masked:
        mask[0, 70:], mask[1, ::3], mask[2] = False, False, False
    mask = mask.t().contiguous().t()  # no stride is that of a contiguous tensor
    logits = 2 * random(config.num_experts, size, groups).permute(2, 1, 0)
    logits[0, :9] = 0.0  # equal probabilities: the lower index wins
    upstream = random(size, groups, config.top_n, seed=3).permute(2, 1, 0)

    def run(divisor: Tensor | None) -> tuple[Any, Tensor]:
        leaf = logits.clone().requires_grad_()  # a clone has the same strides
        generator = torch.Generator(DEVICE).manual_seed(4)
        routing = route(leaf, mask, config, training=True, generator=generator, divisor=divisor)
        gated = (routing.gate_NGS * upstream).sum()
        (gated + 3 * routing.load_balance_loss + 0.1 * routing.router_z_loss).backward()
        assert leaf.grad is not None
        return routing, leaf.grad

    for divisor in (None, torch.tensor(77.0, device=DEVICE)):
        found, gradient = run(divisor)
        with available.torch_only():
            expected, exact = run(divisor)
        assert found.rows is not None
        assert expected.rows is None
        assert torch.equal(found.expert_NGS, expected.expert_NGS)
        assert torch.equal(found.kept_NGS, expected.kept_NGS)
        assert torch.equal(found.requested_NGS, expected.requested_NGS)
        assert torch.equal(found.position_NGS[found.kept_NGS], expected.position_NGS[found.kept_NGS])
        for a, b in zip(found.buffer(), expected.buffer(), strict=True):
            assert torch.equal(a, b)
        assert torch.allclose(found.gate_NGS, expected.gate_NGS, rtol=2e-6, atol=2e-6)
        assert torch.equal(found.gate_NGS == 0, expected.gate_NGS == 0)
        for field in ("load_balance_loss", "router_z_loss", "max_logit", "real_tokens"):
            assert torch.allclose(getattr(found, field), getattr(expected, field), rtol=1e-6), field
            assert getattr(found, field).dtype == getattr(expected, field).dtype
        assert found.dropped_tokens() == expected.dropped_tokens()
        assert torch.allclose(gradient, exact, rtol=2e-6, atol=2e-6)


LAYERS: dict[str, dict[str, Any]] = {
    "top-2": {},
    "threshold": {"second_policy": "threshold"},
    "prioritized": {"batch_prioritized": True, "second_policy": "threshold"},
    "flaxformer": {"gating": "flaxformer", "second_policy": "random"},  # the default, of no effect there
    "flaxformer, prioritized": {"gating": "flaxformer", "second_policy": "random", "batch_prioritized": True},
    "expert choice": {"gating": "expert_choice"},
    "dropless": {"capacity": "dropless"},
    "top-1, prioritized": {"top_n": 1, "batch_prioritized": True},
    "top-3, dropless": {"top_n": 3, "capacity": "dropless"},
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_sparse_layer_of_every_gating(name: str):
    options: dict[str, Any] = {
        "second_policy": "all",
        "num_experts": 4,
        "d_model": 24,
        "d_ff": 16,
        "group_size": 40,
    } | LAYERS[name]
    config = StMoeConfig(**options)
    layer = SparseFeedForward(config).to(DEVICE)
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data = random(*parameter.shape, seed=seed) * parameter.shape[-1] ** -0.5
    mask = torch.ones(3, 40, dtype=torch.bool, device=DEVICE)
    mask[1, 30:], mask[2, ::3] = False, False

    def run() -> dict[str, Tensor]:
        layer.zero_grad()
        x = random(3, 40, config.d_model, seed=9).requires_grad_()
        y, losses = layer(x, mask)
        ((y * random(*y.shape, seed=8)).sum() + losses.load_balance + losses.z).backward()
        found = {"y": y.detach(), "x": x.grad} | {name: p.grad for name, p in layer.named_parameters()}
        return {name: tensor.clone() for name, tensor in found.items() if tensor is not None}

    found = run()
    with available.torch_only():
        expected = run()
    assert found.keys() == expected.keys()
    assert len(found) == 6
    for tensor in found:
        assert error(found[tensor], expected[tensor].double()) < 5e-6, tensor
