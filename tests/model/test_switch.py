"""Whole Switch Transformers: every feed-forward, or every second one, is a top-1 layer, and no dense one follows it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import StMoeConfig
from model.initialization import initialize_weights
from model.layers.feed_forward import FeedForward
from model.moe.layer import SparseFeedForward
from model.st_moe import StMoeForConditionalGeneration

EXPERTS = 4
SIZES: dict[str, Any] = {
    "vocab_size": 128, "d_model": 26, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 4, "group_size": 32,
    "router_z_coefficient": 0, "extra_feed_forward": "none",
}  # fmt: skip
KINDS = {"C": {"feed_forward": "relu", "sparse_step": 1}, "XXL": {"feed_forward": "geglu", "sparse_step": 2}}


def make_model(seed: int, **options: Any) -> StMoeForConditionalGeneration:
    config = StMoeConfig(**SIZES | {"num_experts": EXPERTS, "top_n": 1} | options)
    model = StMoeForConditionalGeneration(config)
    initialize_weights(model, config, seed=seed)
    return model


def make_batch() -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(1)
    inputs, labels = (torch.randint(2, 128, (4, length), generator=source) for length in (16, 8))
    inputs[1, 12:], labels[1, 5:] = 0, -100
    return {"input_ids": inputs, "labels": labels}


def feed_forwards(model: StMoeForConditionalGeneration) -> dict[str, Any]:
    """The feed-forward of every block, by the name that the configuration gives to sparse ones."""
    stacks = {"encoder": model.encoder, "decoder": model.decoder}
    return {f"{name}_{i}": block.feed_forward for name, stack in stacks.items() for i, block in enumerate(stack.blocks)}


def become(sparse: SparseFeedForward, dense: FeedForward) -> None:
    """Let a token's expert, whose weight is 1 / E while the router is zero, give what the dense layer gives."""
    w_in = dense.w_in.weight
    halves = w_in.chunk(2) if dense.w_gate is None else (w_in, dense.w_gate.weight)
    with torch.no_grad():
        sparse.router.weight.zero_()
        for stack, matrix in zip((sparse.experts.w1, sparse.experts.w3), halves, strict=True):
            stack.copy_(matrix.expand_as(stack))
        sparse.experts.w2.copy_((EXPERTS * dense.w_out.weight).expand_as(sparse.experts.w2))


@pytest.mark.parametrize("kind", KINDS)
def test_experts_that_are_the_dense_layer_make_the_dense_model(kind: str):
    switch = make_model(0, **KINDS[kind], eval_capacity_factor=EXPERTS)
    dense = make_model(1, num_experts=0, feed_forward=KINDS[kind]["feed_forward"])
    switch.load_state_dict(dense.state_dict(), strict=False)
    replaced = []
    for (name, of_switch), of_dense in zip(feed_forwards(switch).items(), feed_forwards(dense).values(), strict=True):
        if isinstance(of_switch, SparseFeedForward):
            become(of_switch, of_dense)
            replaced.append(name)
    every_second = [f"{stack}_{i}" for stack in ("encoder", "decoder") for i in (1, 3)]
    assert replaced == (list(feed_forwards(dense)) if kind == "C" else every_second)
    batch = make_batch()
    found, expected = switch.eval()(**batch), dense.eval()(**batch)
    assert found.dropped_fraction == 0
    real = batch["labels"] != -100
    torch.testing.assert_close(found.logits[real], expected.logits[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.loss - expected.loss, 1e-2 * found.load_balance_loss, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss_and_reaches_every_expert(kind: str):
    model = make_model(0, **KINDS[kind], router_jitter=0.01, min_capacity=2, router_initializer_factor=20).train()
    optimizer, batch, losses = torch.optim.Adam(model.parameters(), 3e-3), make_batch(), []
    layers = {name: layer for name, layer in feed_forwards(model).items() if isinstance(layer, SparseFeedForward)}
    assert list(layers) == model.config.sparse_layer_names()
    reached = {name: torch.zeros(EXPERTS, dtype=torch.bool) for name in layers}
    torch.manual_seed(0)
    for _ in range(10):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        for name, layer in layers.items():
            of_experts, of_router = layer.experts.w2.grad, layer.router.weight.grad
            assert of_experts is not None
            assert of_router is not None
            assert of_router.any()
            reached[name] |= of_experts.flatten(1).any(dim=1)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(experts.all() for experts in reached.values())
