"""Rounded arithmetic against torch's own bf16, and the layer against the model's.

Shape suffixes: T = tokens, E = experts, d = d_model.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model.config import StMoeConfig
from model.initialization import initialize_weights
from model.moe.layer import SparseFeedForward
from studies.round_off.laws import spacing
from studies.round_off.measure import random_layer, weights_of
from studies.round_off.rounding import (
    PRECISIONS,
    REFERENCE,
    SOFTMAX_INPUT,
    combine,
    decide,
    expert_outputs,
    to_bf16,
)

CONFIG = StMoeConfig(d_model=32, d_ff=48, num_experts=4, router_initializer_factor=50, initializer_scale=1.0)
BY_NAME = {precision.name: precision for precision in PRECISIONS}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rounded_product(x_Td: Tensor, w_Ed: Tensor) -> Tensor:
    """The study's model of a product in bf16."""
    return to_bf16(to_bf16(x_Td) @ to_bf16(w_Ed).T)


@pytest.mark.parametrize(
    ("x", "nearest"),
    [(128.5, 128.0), (129.5, 130.0), (1 + 2**-8, 1.0), (1 + 3 * 2**-8, 1 + 2**-6), (-0.1, -0.10009766)],
)
def test_rounding_is_to_the_nearest_and_ties_to_even(x: float, nearest: float) -> None:
    assert to_bf16(torch.tensor(x)).item() == pytest.approx(nearest, rel=1e-7)
    assert to_bf16(torch.tensor(x), rounded=False).item() == pytest.approx(x)


def test_the_model_of_a_product_equals_torchs_where_sums_are_exact() -> None:
    source = torch.Generator().manual_seed(1)
    x_Td, w_Ed = (torch.randint(-50, 51, (n, 64), generator=source).float() for n in (40, 8))
    exact_TE = x_Td.double() @ w_Ed.double().T
    product_TE = rounded_product(x_Td, w_Ed)
    assert (product_TE != exact_TE).float().mean() > 0.5, "most results need rounding"
    assert torch.equal(product_TE, functional.linear(x_Td.bfloat16(), w_Ed.bfloat16()).float())


def test_the_model_of_a_product_equals_torchs_but_for_the_order_of_sums() -> None:
    x_Td, w_Ed = random(300, 64), random(8, 64, seed=1)
    product_TE = rounded_product(x_Td, w_Ed)
    torch_TE = functional.linear(x_Td.bfloat16(), w_Ed.bfloat16()).float()
    different_TE = product_TE != torch_TE
    assert different_TE.float().mean() < 0.01
    assert ((product_TE - torch_TE).abs() <= spacing(torch_TE)).all()


def test_the_layer_in_fp32_is_the_models() -> None:
    config = replace(CONFIG, capacity="dropless", second_policy="all")
    layer = SparseFeedForward(config)
    initialize_weights(layer, config, seed=3)
    x_Td = random(60, config.d_model, seed=2)
    with torch.no_grad():
        y_BLd, _ = layer.eval()(x_Td.unsqueeze(0), torch.ones(1, 60, dtype=torch.bool))
    precision = BY_NAME["fp32"]
    weights = weights_of(layer)
    decisions = decide(x_Td, weights.router_Ed, 2, precision)
    y_Td = combine(expert_outputs(x_Td, weights, precision), decisions, precision)
    torch.testing.assert_close(y_Td, y_BLd[0], rtol=1e-4, atol=1e-6)


def test_the_layer_in_bf16_is_near_the_models() -> None:
    config = replace(CONFIG, capacity="dropless", second_policy="all", router_precision="bf16")
    x_Td, weights = random_layer(config, 60, seed=3)
    layer = SparseFeedForward(config)
    initialize_weights(layer, config, seed=3)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits_TE = layer.router(x_Td)
        y_BLd, _ = layer.eval()(x_Td.unsqueeze(0), torch.ones(1, 60, dtype=torch.bool))
    precision = replace(BY_NAME["everything"], gates=False)  # the model computes probabilities in float32
    decisions = decide(x_Td, weights.router_Ed, 2, precision)
    assert (decisions.logits_TE != logits_TE).float().mean() < 0.02
    y_Td = combine(expert_outputs(x_Td, weights, precision), decisions, precision)
    exact_Td = combine(
        expert_outputs(x_Td, weights, REFERENCE), decide(x_Td, weights.router_Ed, 2, REFERENCE), REFERENCE
    )
    error, difference = (y_Td - exact_Td).norm(), (y_Td - y_BLd[0].float()).norm()
    assert difference < 0.5 * error, "what both round is the same"


def test_only_what_a_precision_names_is_rounded() -> None:
    x_Td, weights = random_layer(CONFIG, 50, seed=0)
    exact = decide(x_Td, weights.router_Ed, 2, REFERENCE)
    fp32 = decide(x_Td, weights.router_Ed, 2, BY_NAME["fp32"])
    torch.testing.assert_close(fp32.logits_TE.double(), exact.logits_TE, rtol=1e-5, atol=1e-5)
    assert torch.equal(decide(x_Td, weights.router_Ed, 2, SOFTMAX_INPUT).logits_TE, to_bf16(fp32.logits_TE))
    operands = decide(x_Td, weights.router_Ed, 2, BY_NAME["operands"]).logits_TE
    assert torch.equal(operands, to_bf16(x_Td) @ to_bf16(weights.router_Ed).T)
    outputs = {name: expert_outputs(x_Td, weights, precision) for name, precision in BY_NAME.items()}
    assert torch.equal(outputs["router"], outputs["fp32"])
    assert torch.equal(outputs["selective"], outputs["everything"])
    assert not torch.equal(outputs["selective"], outputs["fp32"])


def test_the_gates_of_a_token_add_up_to_one() -> None:
    x_Td, weights = random_layer(CONFIG, 50, seed=0)
    decisions = decide(x_Td, weights.router_Ed, 2, REFERENCE)
    gates_TE = decisions.gates_of_experts()
    torch.testing.assert_close(gates_TE.sum(-1), torch.ones(50, dtype=torch.float64))
    assert torch.equal(gates_TE.argmax(-1), decisions.expert_NT[0])
