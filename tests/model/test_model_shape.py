"""Sizes of the paper's models, positions of the sparse layers, variants, saving, config errors and initial weights."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.project import ROOT
from model.architecture import documented_fields
from model.config import StMoeConfig
from model.initialization import initialize_weights
from model.moe.experts import Experts
from model.moe.layer import SparseFeedForward
from model.st_moe import StMoeForConditionalGeneration

L = {"d_model": 1024, "d_ff": 2816, "d_kv": 64, "num_heads": 16, "num_layers": 24}
LARGEST = {"d_model": 5120, "d_ff": 20480, "d_kv": 128, "num_heads": 64, "num_layers": 24}
SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "d_model": 32,
    "d_ff": 48,
    "d_kv": 12,
    "num_heads": 4,
    "num_layers": 4,
    "num_experts": 8,
    "group_size": 16,
}


def make_model(**options: Any) -> StMoeForConditionalGeneration:
    config = StMoeConfig(**SMALL | options)
    model = StMoeForConditionalGeneration(config)
    initialize_weights(model, config, seed=options.get("seed", 0))
    return model


def make_batch() -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(0)
    return {key: torch.randint(2, 128, (4, 16), generator=source) for key in ("input_ids", "labels")}


@pytest.mark.parametrize(
    ("preset", "billions"),
    [(L, 0.783), (L | {"num_experts": 32}, 4.105), (LARGEST | {"num_experts": 64}, 269.10)],
    ids=["dense-l", "st-moe-l", "st-moe-32b"],
)
def test_parameter_counts_of_the_paper(preset: dict[str, int], billions: float) -> None:
    with torch.device("meta"):
        model = StMoeForConditionalGeneration(StMoeConfig(vocab_size=32128, **preset))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, rel=1e-3)
    assert model.lm_head.weight is not model.shared.weight


@pytest.mark.parametrize("position", ["after", "before", "none"])
def test_every_fourth_layer_is_sparse(position: str) -> None:
    model = make_model(num_layers=9, num_decoder_layers=8, extra_feed_forward=position)
    for stack, depth in ((model.encoder, 9), (model.decoder, 8)):
        assert len(stack.blocks) == depth
        for index, block in enumerate(stack.blocks):
            assert isinstance(block.feed_forward, SparseFeedForward) == (index in (3, 7))
            assert (block.extra_feed_forward is not None) == (index in (3, 7) and position != "none")


@pytest.mark.parametrize("position", ["after", "before", "none"])
def test_extra_feed_forward_runs_at_its_position(position: str) -> None:
    block: Any = make_model(extra_feed_forward=position, second_policy="all").encoder.blocks[3]
    order: list[str] = []
    for name in ("feed_forward", "extra_feed_forward"):
        module = getattr(block, name)
        if module is not None:
            module.register_forward_hook(lambda *_, name=name: order.append(name))
    x = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 16, dtype=torch.bool)
    y, _ = block(x, None, mask)
    expected = {
        "after": ["feed_forward", "extra_feed_forward"],
        "before": ["extra_feed_forward", "feed_forward"],
        "none": ["feed_forward"],
    }
    assert order == expected[position]
    # Each sub-layer reads the normalized stream and adds to it.
    z = x + block.self_attention(slow_norm(x), None)
    for name in expected[position]:
        normed = slow_norm(z)
        z = z + (block.feed_forward(normed, mask)[0] if name == "feed_forward" else block.extra_feed_forward(normed))
    torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-5)


def slow_norm(x: Tensor) -> Tensor:
    """RMSNorm with its initial scale of 1."""
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_experts": 0},
        {"feed_forward": "relu"},
        {"rms_norm_scale": False},
        {"feed_forward_bias": "multiplicative"},
        {"feed_forward_bias": "additive", "feed_forward": "relu"},
        {"extra_feed_forward": "before", "top_n": 1, "sparse_step": 1},
        {"extra_feed_forward": "none", "top_n": 3, "router_jitter": 0.01, "dropout_rate": 0.1},
    ],
    ids=str,
)
def test_variants_train(options: dict[str, Any]) -> None:
    # Capacity for all tokens, so that no expert is without a gradient by overflow.
    model = make_model(**options, train_capacity_factor=8.0, load_balance_coefficient=0.1).train()
    names = [name for name, _ in model.named_parameters()]
    assert any("scale" in name for name in names) == options.get("rms_norm_scale", True)
    assert any("hidden_bias" in name for name in names) == ("feed_forward_bias" in options)
    assert any("w_gate" in name for name in names) == (options.get("feed_forward") != "relu")
    torch.manual_seed(0)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05), []
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(**make_batch()).loss
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().sum() > 0, name
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert losses[0] == pytest.approx(math.log(128), rel=0.6)


def test_relu_has_the_parameters_of_geglu_at_one_and_a_half_times_the_width() -> None:
    geglu, relu = make_model(d_ff=48), make_model(d_ff=72, feed_forward="relu")
    assert sum(p.numel() for p in geglu.parameters()) == sum(p.numel() for p in relu.parameters())


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    model = make_model(num_decoder_layers=8, feed_forward_bias="additive", second_policy="all").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)  # off the initial values, which a loader might restore by itself
    model.save_pretrained(tmp_path)
    loaded = StMoeForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert {f.name: getattr(loaded.config, f.name) for f in documented_fields()} == {
        f.name: getattr(model.config, f.name) for f in documented_fields()
    }
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    with torch.no_grad():
        assert torch.equal(loaded(**make_batch()).logits, model(**make_batch()).logits)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"top_n": 3, "num_experts": 2}, "model.top_n"),
        ({"top_n": 0}, "model.top_n"),
        ({"top_n": 4}, "model.top_n"),
        ({"num_experts": 1}, "model.num_experts"),
        ({"num_experts": -2}, "model.num_experts"),
        ({"d_model": "wide"}, "d_model"),
        ({"d_model": 1.5}, "d_model"),
        ({"second_policy": "sometimes"}, "second_policy"),
        ({"gating": "hash"}, "gating"),
        ({"decoder_gating": "expert_choice"}, "model.decoder_gating"),
        ({"gating": "expert_choice", "capacity": "dropless"}, "model.capacity"),
        ({"gating": "expert_choice", "batch_prioritized": True}, "model.gating"),
        ({"capacity": "dropless", "batch_prioritized": True}, "model.capacity"),
        ({"gating": "flaxformer", "second_policy": "all"}, "model.second_policy"),
        ({"feed_forward": "swish"}, "feed_forward"),
        ({"feed_forward": "relu", "d_ff": 33}, "model.d_ff"),
        ({"dropout_rate": 1.0}, "model.dropout_rate"),
        ({"router_jitter": -0.1}, "model.router_jitter"),
        ({"router_initializer_factor": 0}, "model.router_initializer_factor"),
        ({"train_capacity_factor": 0}, "model.train_capacity_factor"),
        ({"group_size": 0}, "model.group_size"),
        ({"sparse_step": 5}, "model.sparse_step"),
        ({"relative_attention_num_buckets": 30}, "model.relative_attention_num_buckets"),
        ({"relative_attention_max_distance": 16}, "model.relative_attention_max_distance"),
    ],
    ids=str,
)
def test_config_errors_name_the_key(options: dict[str, Any], key: str) -> None:
    with pytest.raises(Exception, match=key) as error:
        StMoeConfig(**SMALL | options)
    if key.startswith("model."):
        assert str(options[key.removeprefix("model.")]) in str(error.value), "the message has to show the value"


def test_building_does_not_import_deepspeed() -> None:
    code = (
        "import sys, model; from model.config import StMoeConfig; from model.st_moe import *;"
        "StMoeForConditionalGeneration(StMoeConfig(vocab_size=64, d_model=8, d_ff=8, d_kv=4, num_heads=2,"
        "num_layers=4, num_experts=2)); print([m for m in sys.modules if m.split('.')[0] == 'deepspeed'])"
    )
    root = ROOT
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# Standard deviations of docs/method.md (Model), before truncation, by the end of the parameter's name.
SIGMA = {
    "q.weight": math.sqrt(0.1 / 32 / 12),
    "k.weight": math.sqrt(0.1 / 32),
    "v.weight": math.sqrt(0.1 / 32),
    "o.weight": math.sqrt(0.1 / 48),
    "w_in.weight": math.sqrt(0.1 / 32),
    "w_gate.weight": math.sqrt(0.1 / 32),
    "w_out.weight": math.sqrt(0.1 / 40),
    "experts.w1": math.sqrt(0.1 / 32),
    "experts.w3": math.sqrt(0.1 / 32),
    "experts.w2": math.sqrt(0.1 / 40),
    "lm_head.weight": math.sqrt(0.1 / 32),
    "position_bias.weight": math.sqrt(0.1 / 32),  # 32 buckets
}
# Standard deviation of a unit normal truncated at two: sqrt(1 - 2 * 2 * phi(2) / (Phi(2) - Phi(-2))).
TRUNCATED = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))


@pytest.mark.parametrize("path", ["initialize_weights", "post_init"])
def test_initial_spreads(path: str) -> None:
    assert pytest.approx(0.8796, abs=1e-4) == TRUNCATED
    torch.manual_seed(0)
    # d_ff and heads * d_kv differ from d_model, so that a fan-in of the wrong side is seen.
    config = StMoeConfig(**SMALL | {"d_ff": 40, "num_layers": 8, "feed_forward_bias": "multiplicative"})
    model = StMoeForConditionalGeneration(config)
    if path == "initialize_weights":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))  # so that a missed one is seen
        initialize_weights(model, config, seed=0)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    seen = set()
    for ending, sigma in SIGMA.items():
        family = torch.cat([weights[name].flatten() for name in weights if name.endswith(ending)])
        seen |= {name for name in weights if name.endswith(ending)}
        assert family.abs().max() <= 2 * sigma * (1 + 1e-6), ending
        tolerance = 4 / math.sqrt(2 * len(family))  # four standard errors of a normal's; a truncated one's are smaller
        assert family.std().item() == pytest.approx(TRUNCATED * sigma, rel=tolerance), ending
        assert abs(family.mean().item()) < 4 * sigma / math.sqrt(len(family)), ending
    for ending, sigma in (("shared.weight", 1.0), ("router.weight", 0.02)):
        family = torch.cat([weights[name].flatten() for name in weights if name.endswith(ending)])
        seen |= {name for name in weights if name.endswith(ending)}
        assert family.std().item() == pytest.approx(sigma, rel=4 / math.sqrt(2 * len(family))), ending
        # 1,024 numbers or more have one beyond 2.2 sigma unless they are truncated.
        assert family.abs().max() > 2.2 * sigma, ending
    for name in weights.keys() - seen:
        assert "norm.scale" in name or "hidden_bias" in name, name
        assert (weights[name] == 1).all(), name
    additive = make_model(feed_forward_bias="additive")
    assert all((p == 0).all() for name, p in additive.named_parameters() if "hidden_bias" in name)


def test_routers_may_start_larger_and_nothing_else_changes() -> None:
    usual, larger = make_model(), make_model(router_initializer_factor=100)
    for (name, one), other in zip(usual.named_parameters(), larger.parameters(), strict=True):
        torch.testing.assert_close(other, one * (100 if name.endswith("router.weight") else 1))


def test_seeds_and_experts() -> None:
    first, same, other = make_model(), make_model(), make_model()
    initialize_weights(other, other.config, seed=1)
    for (name, a), b, c in zip(first.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        if "norm.scale" not in name:
            assert not torch.equal(a, c), name
    # No two matrices of the whole model, nor two experts, may begin alike.
    drawn: list[Tensor] = []
    for name, weight in first.named_parameters():
        if "norm.scale" not in name:
            drawn += list(weight) if "experts.w" in name else [weight]
    fingerprints = {tuple(w.flatten()[:8].tolist()) for w in drawn}
    sigma_free = {tuple((w.flatten()[:8] / w.flatten()[0]).tolist()) for w in drawn}
    assert len(fingerprints) == len(sigma_free) == len(drawn)


class UpperHalf(SparseFeedForward):
    def make_experts(self, config: StMoeConfig) -> Experts:
        return Experts(config, num_local=4, first=4)


def test_half_of_the_experts_are_initialized_as_in_the_full_model() -> None:
    full = make_model()
    half = StMoeForConditionalGeneration(StMoeConfig(**SMALL), make_sparse=UpperHalf)
    initialize_weights(half, half.config, seed=0)
    for (name, a), b in zip(full.named_parameters(), half.parameters(), strict=True):
        if "experts.w" in name:
            assert b.shape[0] == 4
            assert torch.equal(a[4:], b), name
        else:
            assert torch.equal(a, b), name


def test_initialization_of_a_bf16_model_rounds_the_same_numbers() -> None:
    full, half = make_model(), make_model().to(torch.bfloat16)
    initialize_weights(half, half.config, seed=0)
    for a, b in zip(full.parameters(), half.parameters(), strict=True):
        assert torch.equal(a.to(torch.bfloat16), b)


def test_unknown_parameters_are_refused() -> None:
    model = make_model()
    model.surprise = nn.Conv1d(2, 2, 1)
    with pytest.raises(TypeError, match="Conv1d"):
        initialize_weights(model, model.config, seed=0)
