"""The sparse layer against a loop over tokens and experts, and its gradients."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import StMoeConfig
from model.initialization import initialize_weights
from model.moe.dispatch import combine, dispatch, tokens_of_rows
from model.moe.layer import SparseFeedForward
from model.moe.router import Router

SIZES: dict[str, Any] = {"d_model": 16, "d_ff": 24, "num_experts": 4, "group_size": 12, "min_capacity": 1}


def make_layer(**options: Any) -> SparseFeedForward:
    config = StMoeConfig(**SIZES | {"second_policy": "all"} | options)
    layer = SparseFeedForward(config)
    initialize_weights(layer, config, seed=0)
    with torch.no_grad():
        layer.router.weight.mul_(30)  # gates far from 1/2, so that swapped gates are seen
        if layer.experts.hidden_bias is not None:
            # Initial ones and zeros would hide a bias that is missing or another expert's.
            layer.experts.hidden_bias.weight.normal_(generator=torch.Generator().manual_seed(1))
    return layer


def make_input(seed: int = 2, rows: int = 4, length: int = 6) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, length, SIZES["d_model"], generator=source)
    return x + 0.5, torch.rand(rows, length, generator=source) < 0.8


def slow_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def slow_expert(layer: SparseFeedForward, expert: int, x: Tensor) -> Tensor:
    experts, config = layer.experts, layer.config
    w_in, w_gate, w_out = (w[expert].detach().double() for w in (experts.w1, experts.w3, experts.w2))
    if config.feed_forward == "geglu":
        hidden = slow_gelu(w_in @ x) * (w_gate @ x)
    else:
        hidden = torch.cat((w_in @ x, w_gate @ x)).clamp(min=0)
    if experts.hidden_bias is not None:
        bias = experts.hidden_bias.weight[expert].detach().double()
        hidden = hidden * bias if config.feed_forward_bias == "multiplicative" else hidden + bias
    return w_out @ hidden


def slow_layer(layer: SparseFeedForward, x_BLd: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Output in float64 and how many experts served each token; training, second_policy all."""
    config, x, mask = layer.config, x_BLd.detach().double().flatten(0, 1), mask_BL.flatten()
    size = config.group_size
    capacity = max(min(size, int(size * config.train_capacity_factor / config.num_experts)), config.min_capacity)
    probs = (x @ layer.router.weight.detach().double().T).softmax(-1)
    y, served = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.int64)
    for start in range(0, len(x), size):
        free_slots = [capacity] * config.num_experts
        for choice in range(config.top_n):
            for token in range(start, start + size):
                best = probs[token].argsort(descending=True)[: config.top_n]
                expert = int(best[choice])
                if not mask[token] or not free_slots[expert]:
                    continue
                free_slots[expert] -= 1
                gate = probs[token, expert] / (probs[token, best].sum() if config.top_n > 1 else 1)
                y[token] += gate * slow_expert(layer, expert, x[token])
                served[token] += 1
    return y.view(x_BLd.shape), served.view(mask_BL.shape)


@pytest.mark.parametrize("factor", [0.7, 8.0])
@pytest.mark.parametrize("top_n", [1, 2, 3])
@pytest.mark.parametrize(
    ("feed_forward", "bias"),
    [("geglu", "none"), ("relu", "none"), ("geglu", "multiplicative"), ("geglu", "additive"), ("relu", "additive")],
)
def test_layer_equals_a_loop(feed_forward: str, bias: str, top_n: int, factor: float) -> None:
    layer = make_layer(feed_forward=feed_forward, feed_forward_bias=bias, top_n=top_n, train_capacity_factor=factor)
    x, mask = make_input()
    expected, served = slow_layer(layer, x, mask)
    y, losses = layer.train()(x, mask)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    assert (y[~mask] == 0).all()
    assert (y[mask & (served == 0)] == 0).all()
    assert losses.real_tokens.item() == mask.sum()
    assert losses.dropped_tokens.item() == (mask & (served == 0)).sum()
    assert (losses.dropped_tokens.item() > 0) == (factor < 1)


def test_layer_in_float64_equals_the_loop_but_for_float32_gates() -> None:
    layer = make_layer(train_capacity_factor=1.0).double().train()
    x, mask = make_input(rows=6)
    y, _ = layer(x.double(), mask)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, slow_layer(layer, x, mask)[0], rtol=1e-6, atol=1e-6)


def test_layer_gradients_equal_the_dense_formula() -> None:
    """With room for all, y = sum of gate x expert, written densely and differentiated by autograd in float64."""
    layer = make_layer(train_capacity_factor=8.0).train()
    x, mask = make_input()
    x.requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    (layer(x, mask)[0] * weight).sum().backward()

    leaves = {n: p.detach().double().requires_grad_() for n, p in layer.named_parameters()}
    x64 = x.detach().double().requires_grad_()
    probs = (x64 @ leaves["router.weight"].T).softmax(-1)
    top, index = probs.topk(2, dim=-1)
    gates = torch.zeros_like(probs).scatter(-1, index, top / top.sum(-1, keepdim=True)) * mask.unsqueeze(-1)
    hidden = slow_gelu(torch.einsum("bld,efd->blef", x64, leaves["experts.w1"]))
    hidden = hidden * torch.einsum("bld,efd->blef", x64, leaves["experts.w3"])
    y = torch.einsum("ble,blef,edf->bld", gates, hidden, leaves["experts.w2"])
    (y * weight).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-4, atol=1e-5)
    for name, parameter in layer.named_parameters():
        expected = leaves[name].grad
        assert parameter.grad is not None
        assert expected is not None
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(parameter.grad.double(), expected, rtol=1e-4, atol=1e-5)


def test_dispatch_and_combine_gradients() -> None:
    # Five tokens, two choices, seven rows: token 1 has no first row, token 3 none at all; row 6 is empty.
    slots = torch.tensor([[4, 7, 0, 7, 2], [1, 5, 7, 7, 3]])
    token_of_row = tokens_of_rows(slots, 7)
    assert token_of_row.tolist() == [2, 0, 4, 4, 0, 1, 5]
    source = torch.Generator().manual_seed(4)
    x = torch.randn(5, 3, generator=source, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(7, 3, generator=source, dtype=torch.float64, requires_grad=True)
    gates = torch.rand(2, 5, generator=source, dtype=torch.float64, requires_grad=True)
    matrix = torch.zeros(2, 5, 7, dtype=torch.float64)
    for choice, token in (slots < 7).nonzero().tolist():
        matrix[choice, token, slots[choice, token]] = 1
    torch.testing.assert_close(dispatch(x, slots, token_of_row), matrix.sum(0).T @ x)
    combined = combine(rows, gates, slots, token_of_row)
    torch.testing.assert_close(combined, torch.einsum("nt,ntr,rd->td", gates, matrix, rows))
    assert (combined[3] == 0).all()
    assert torch.autograd.gradcheck(lambda x: dispatch(x, slots, token_of_row), (x,))
    assert torch.autograd.gradcheck(lambda r, g: combine(r, g, slots, token_of_row), (rows, gates))


def test_padding_changes_nothing_for_real_tokens() -> None:
    layer = make_layer(train_capacity_factor=0.7).train()
    x, mask = make_input()
    other = torch.where(mask.unsqueeze(-1), x, 100 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5)))
    (y, losses), (y_other, losses_other) = layer(x, mask), layer(other, mask)
    assert torch.equal(y, y_other)
    assert losses.load_balance == losses_other.load_balance
    torch.testing.assert_close(losses.z, losses_other.z)


def test_autocast_runs_experts_in_bf16_and_routes_in_float32() -> None:
    layer = make_layer(train_capacity_factor=0.7).train()
    x, mask = make_input()
    expected, _ = slow_layer(layer, x, mask)
    exact, exact_losses = layer(x, mask)
    exchanged: list[torch.dtype] = []
    layer.experts.register_forward_pre_hook(lambda _, inputs: exchanged.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, losses = layer(x, mask)
    assert y.dtype == torch.bfloat16
    assert exchanged == [torch.bfloat16], "rows are cast before ranks exchange them: half the bytes"
    torch.testing.assert_close(y.double(), expected, rtol=0.05, atol=0.05)
    assert torch.equal((y != 0).any(-1), (exact != 0).any(-1))
    assert losses.load_balance == exact_losses.load_balance
    assert losses.z == exact_losses.z


def test_jitter_is_only_in_training_and_within_its_range() -> None:
    config = StMoeConfig(**SIZES | {"d_model": 4}, router_jitter=0.01)
    router, x = Router(config), torch.full((5000, 4), 2.0)
    with torch.no_grad():
        router.weight.copy_(torch.eye(4))
    assert torch.equal(router.eval()(x), x)
    ratio = router.train()(x) / 2
    assert ((ratio >= 0.99 - 1e-6) & (ratio <= 1.01 + 1e-6)).all()
    assert ratio.std().item() == pytest.approx(0.02 / math.sqrt(12), rel=0.03)
    assert ratio.mean().item() == pytest.approx(1, abs=3e-4)
