"""Products under autocast: the fused form against autocast's own, and both against float32."""

from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import StMoeConfig
from model.initialization import initialize_weights
from model.layers.products import cast_together, geglu, project
from model.st_moe import StMoeForConditionalGeneration
from tests.support.small import SMALL_MODEL, global_batch

VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {"num_experts": 0},
    "sparse": {},
    "relu": {"num_experts": 0, "feed_forward": "relu"},
    "bias": {"num_experts": 0, "feed_forward_bias": "additive"},
    "wide heads": {"num_experts": 0, "d_kv": 16},
}


def gradients(
    options: dict[str, Any], *, fused: bool, autocast: bool, checkpointing: bool = False
) -> dict[str, Tensor]:
    """The loss and every gradient of one batch without random draws."""
    config = StMoeConfig(**SMALL_MODEL | {"second_policy": "all", "train_capacity_factor": 4.0} | options)
    model = StMoeForConditionalGeneration(config).train()
    initialize_weights(model, config, seed=0)
    if checkpointing:
        model.activation_checkpointing_enable()
    for module in model.modules():
        if hasattr(module, "keep_casts"):
            module.keep_casts = fused
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = model(**global_batch(0, 4)).loss
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


def error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The error of all gradients together, relative."""
    names = [name for name in expected if name != "loss"]
    wrong = sum(float((found[name] - expected[name]).square().sum()) for name in names)
    return (wrong / sum(float(expected[name].square().sum()) for name in names)) ** 0.5


@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_products_are_as_near_to_float32_as_autocasts_own(variant: str) -> None:
    options = VARIANTS[variant]
    exact = gradients(options, fused=True, autocast=False)
    plain = gradients(options, fused=False, autocast=True)
    fused = gradients(options, fused=True, autocast=True)
    assert {name: g.dtype for name, g in fused.items()} == {name: g.dtype for name, g in plain.items()}
    assert fused["loss"] == pytest.approx(float(exact["loss"]), rel=2e-3)
    assert fused["loss"] == pytest.approx(float(plain["loss"]), rel=1e-3)
    assert error(fused, exact) <= max(1.1 * error(plain, exact), 5e-3)
    again = gradients(options, fused=True, autocast=True, checkpointing=True)
    assert error(again, fused) <= 1e-6


def test_each_gradient_equals_that_of_float64() -> None:
    source = torch.Generator().manual_seed(0)
    x, *weights = (torch.randn(shape, generator=source, dtype=torch.float64) for shape in ((6, 5), (4, 5), (3, 5)))
    modules = []
    for weight in weights:
        modules.append(torch.nn.Linear(5, len(weight), bias=False, dtype=torch.float64))
        modules[-1].weight.data.copy_(weight)
    x.requires_grad_()
    (cast,) = cast_together([[m.weight for m in modules]], torch.float64)
    found = project(x, x, cast, modules)
    grads = [torch.randn(y.shape, generator=source, dtype=torch.float64) for y in found]
    inputs = (x, *(m.weight for m in modules))
    expected = [m(x) for m in modules]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    for mine, theirs in zip(
        torch.autograd.grad(found, inputs, grads), torch.autograd.grad(expected, inputs, grads), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("keep", [True, False])
def test_geglu_of_one_and_of_several(batch: tuple[int, ...], keep: bool) -> None:
    source = torch.Generator().manual_seed(0)
    shapes = ((*batch, 6, 5), (*batch, 7, 5), (*batch, 7, 5), (*batch, 5, 7))
    tensors = [torch.randn(s, generator=source, dtype=torch.float64).requires_grad_() for s in shapes]
    x, w_in, w_gate, w_out = tensors
    found = geglu(x, x, (w_in, w_gate, w_out), keep=keep)
    hidden = torch.nn.functional.gelu(x @ w_in.mT, approximate="tanh") * (x @ w_gate.mT)
    expected = hidden @ w_out.mT
    torch.testing.assert_close(found, expected)
    grad = torch.randn(found.shape, generator=source, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad(found, tensors, grad), torch.autograd.grad(expected, tensors, grad), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
