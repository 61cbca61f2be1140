"""The sparse layer under every gating: output, gradients, memory, and recomputation under activation checkpointing."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import model.moe.layer
from model.capacity import group_tokens
from model.config import StMoeConfig
from model.initialization import initialize_weights
from model.moe.layer import SparseFeedForward
from model.moe.router import Routing, route
from model.st_moe import StMoeForConditionalGeneration
from tests.support.gatings import GATINGS

every_gating = pytest.mark.parametrize("kind", sorted(GATINGS))


def make_layer(kind: str, **options: Any) -> SparseFeedForward:
    config = StMoeConfig(d_model=16, d_ff=24, num_experts=4, **{"group_size": 12, "min_capacity": 1} | options
                         | GATINGS[kind])  # fmt: skip
    layer = SparseFeedForward(config).train()
    initialize_weights(layer, config, seed=0)
    with torch.no_grad():
        layer.router.weight.mul_(30)
    return layer


def make_input(rows: int = 4, length: int = 6) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(2)
    return torch.randn(rows, length, 16, generator=source) + 0.5, torch.rand(rows, length, generator=source) < 0.8


def dense_output(layer: SparseFeedForward, weights: dict[str, Tensor], x_BLd: Tensor, mask_BL: Tensor) -> Tensor:
    """Every expert on every token in float64, combined by the routing's dense tensor: differentiable by autograd."""
    size = group_tokens(mask_BL.numel(), layer.config.group_size)
    logits = (x_BLd @ weights["router.weight"].T).view(-1, size, layer.config.num_experts)
    choices = route(logits.float(), mask_BL.view(-1, size), layer.config, training=True)
    used = choices.dense_combine().sum(-1) > 0
    probs = logits.softmax(-1)
    if layer.config.gating == "top_n":
        kept = torch.zeros_like(probs).scatter_(-1, probs.topk(layer.config.top_n).indices, 1.0)
        probs = probs / (probs * kept).sum(-1, keepdim=True)
    gates = (probs * used).view(*mask_BL.shape, -1)
    hidden = torch.einsum("bld,efd->blef", x_BLd, weights["experts.w1"])
    hidden = torch.nn.functional.gelu(hidden, approximate="tanh")
    hidden = hidden * torch.einsum("bld,efd->blef", x_BLd, weights["experts.w3"])
    return torch.einsum("ble,blef,edf->bld", gates, hidden, weights["experts.w2"])


@every_gating
def test_output_and_gradients_equal_the_dense_formula(kind: str) -> None:
    layer = make_layer(kind, train_capacity_factor=0.8, **({"second_policy": "all"} if "flax" not in kind else {}))
    x, mask = make_input()
    x.requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    y, _ = layer(x, mask)
    (y * weight).sum().backward()
    leaves = {name: p.detach().double().requires_grad_() for name, p in layer.named_parameters()}
    x64 = x.detach().double().requires_grad_()
    expected = dense_output(layer, leaves, x64, mask)
    (expected * weight).sum().backward()
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-4, atol=1e-5)
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), leaves[name].grad, rtol=1e-4, atol=1e-5, msg=name)


@every_gating
def test_padding_alone(kind: str) -> None:
    layer, (x, mask) = make_layer(kind), make_input()
    x.requires_grad_()
    y, losses = layer(x, torch.zeros_like(mask))
    (y.sum() + losses.load_balance + losses.z).backward()
    assert (y == 0).all()
    assert losses.load_balance == losses.z == losses.dropped_tokens == losses.real_tokens == 0
    for parameter in layer.parameters():
        assert parameter.grad is not None, "ZeRO waits for every parameter's gradient"
        assert (parameter.grad == 0).all()


@pytest.mark.parametrize("kind", [kind for kind in sorted(GATINGS) if "dropless" not in kind])
@pytest.mark.parametrize("top_n", [1, 2])
def test_dropped_token_has_no_output_and_no_gradient(kind: str, top_n: int) -> None:
    # One slot per expert and equal tokens, so all but the first of each group are dropped. Gates of dropped tokens
    # are constants, so through y nothing comes back to them, not even by the router; through the z-loss it does,
    # which shows that the zero is not that of a disconnected graph.
    layer = make_layer(kind, top_n=top_n, train_capacity_factor=0.1)
    x = make_input()[0][:1, :1].expand(2, 12, -1).clone().requires_grad_()
    y, losses = layer(x, torch.ones(2, 12, dtype=torch.bool))
    assert losses.dropped_tokens.item() == 22
    assert (y[:, 1:] == 0).all()
    (grad,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    assert (grad[:, 1:] == 0).all()
    assert (grad[:, 0] != 0).any(-1).all()
    (grad,) = torch.autograd.grad(losses.z, x)
    assert (grad != 0).any(-1).all()


class LargestTensor(TorchDispatchMode):
    """Records how many elements the largest result of any operation has, in forward and backward."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@every_gating
def test_no_tensor_of_tokens_by_experts_by_capacity(kind: str) -> None:
    layer = make_layer(kind, group_size=512)
    x, mask = make_input(rows=8, length=64)
    x.requires_grad_()
    with LargestTensor() as largest:
        y, losses = layer(x, mask)
        (y.sum() + losses.z).backward()
    tokens, d_model, d_ff, experts = 512, 16, 24, 4
    capacity = int(tokens * 1.25 / experts)
    # activations of all tokens are seen, and nothing exceeds two products of two requests a token
    assert tokens * d_model <= largest.elements <= 2 * tokens * 2 * d_ff < tokens * experts * capacity / 5


@every_gating
def test_checkpointing_repeats_the_same_routing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = StMoeConfig(
        d_model=16, d_ff=24, num_experts=4, group_size=12, min_capacity=1, vocab_size=64, d_kv=8, num_heads=2,
        num_layers=2, sparse_step=2, second_threshold=0.9, router_jitter=0.01, dropout_rate=0.2,
        load_balance_coefficient=0.1, router_z_coefficient=0.1, train_capacity_factor=1.0, **GATINGS[kind],
    )  # fmt: skip
    source = torch.Generator().manual_seed(6)
    batch = {key: torch.randint(2, 64, (3, 12), generator=source) for key in ("input_ids", "labels")}

    def run(*, checkpointing: bool, seed: int) -> tuple[Tensor, list[Tensor], list[Routing]]:
        network = StMoeForConditionalGeneration(config).train()
        initialize_weights(network, config, seed=0)
        if checkpointing:
            network.activation_checkpointing_enable()
        routings: list[Routing] = []

        def recorded(*args: Any, **kwargs: Any) -> Routing:
            routings.append(route(*args, **kwargs))
            return routings[-1]

        monkeypatch.setattr(model.moe.layer, "route", recorded)
        torch.manual_seed(seed)
        output = network(**batch)
        output.loss.backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        assert len(gradients) == len(list(network.parameters()))
        return output.loss.detach(), gradients, routings

    loss, gradients, routings = run(checkpointing=False, seed=0)
    loss_again, gradients_again, routings_again = run(checkpointing=True, seed=0)
    assert len(routings) == 2
    # backward recomputes the decoder's layer first
    for first, second in zip([*routings, *reversed(routings)], routings_again, strict=True):
        for name in ("expert_NGS", "position_NGS", "kept_NGS", "gate_NGS"):
            assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert torch.equal(loss, loss_again)
    for left, right in zip(gradients, gradients_again, strict=True):
        assert torch.equal(left, right)
    # The randomness is real: another seed, another loss.
    assert not torch.equal(loss, run(checkpointing=False, seed=1)[0])
