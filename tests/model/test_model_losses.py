"""Terms of the objective against torch's own losses, loops and analytic gradients; exactness over micro-batches."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import StMoeConfig
from model.initialization import initialize_weights
from model.layers.norm import RMSNorm
from model.losses import LossDivisors, cross_entropy_and_z, load_balance_loss, max_router_logit, router_z_loss
from model.moe.layer import SparseFeedForward
from model.moe.router import Router
from model.st_moe import StMoeForConditionalGeneration


def random_case(seed: int = 0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 10, 6, generator=source) * 2 + 1
    return logits, torch.rand(3, 10, generator=source) < 0.7


def test_z_loss_and_its_gradient() -> None:
    logits, mask = random_case()
    logits.requires_grad_()
    loss = router_z_loss(logits, mask)
    (grad,) = torch.autograd.grad(loss, logits)
    # L = sum lse^2 / T, so dL/dx = 2 * lse * softmax(x) / T for real tokens and exactly 0 for padding.
    x, real = logits.detach().double(), mask.double().unsqueeze(-1)
    lse = x.exp().sum(-1, keepdim=True).log()
    assert loss.item() == pytest.approx((lse.square() * real).sum().item() / mask.sum().item(), rel=1e-6)
    expected = 2 * lse * x.exp() / x.exp().sum(-1, keepdim=True) * real / mask.sum()
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-7)
    assert (grad[~mask] == 0).all()


def test_z_loss_is_a_mean_over_tokens_not_over_groups() -> None:
    # One group with 1 real token of lse 2, one with 3 of lse 1: (4 + 3) / 4, where group means would give (4 + 1) / 2.
    logits = torch.zeros(2, 3, 2) - torch.tensor(2.0).log()
    logits[0] += 2
    logits[1] += 1
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    assert router_z_loss(logits, mask).item() == pytest.approx(7 / 4, rel=1e-6)
    assert router_z_loss(logits, mask, divisor=torch.tensor(14.0)).item() == pytest.approx(7 / 14, rel=1e-6)


def test_z_loss_of_large_logits_is_finite() -> None:
    logits = torch.full((1, 4, 8), 200.0)
    assert router_z_loss(logits, torch.ones(1, 4)).item() == pytest.approx(
        (200 + torch.tensor(8.0).log().item()) ** 2, rel=1e-6
    )


def test_largest_logit_is_of_real_tokens() -> None:
    logits = torch.tensor([[[1.0, 3.0], [9.0, 0.0]], [[-2.0, 2.5], [0.0, 0.0]]], requires_grad=True)
    mask = torch.tensor([[1, 0], [1, 1]])
    largest = max_router_logit(logits, mask)
    assert largest.item() == 3.0
    assert not largest.requires_grad
    assert max_router_logit(logits, torch.zeros(2, 2)).item() == float("-inf")


def test_load_balance_equals_a_loop() -> None:
    logits, mask = random_case(1)
    probs, first = logits.softmax(-1), logits.argmax(-1)
    per_group = []
    for g in range(3):
        real = mask[g].nonzero().flatten().tolist()
        total = 0.0
        for expert in range(6):
            share = sum(int(first[g, s]) == expert for s in real) / len(real)
            total += share * sum(probs[g, s, expert].item() for s in real) / len(real)
        per_group.append(6 * total)
    assert load_balance_loss(probs, first, mask).item() == pytest.approx(sum(per_group) / 3, rel=1e-6)


def test_load_balance_gradient_goes_through_probabilities_only() -> None:
    logits, mask = random_case(2)
    probs = logits.softmax(-1).requires_grad_()
    (grad,) = torch.autograd.grad(load_balance_loss(probs, logits.argmax(-1), mask), probs)
    # d/dp = E * f_e / (tokens of the group * groups) on real tokens.
    share = functional.one_hot(logits.argmax(-1), 6).double() * mask.unsqueeze(-1)
    share = share.sum(1, keepdim=True) / mask.sum(-1)[:, None, None]
    expected = 6 * share * mask.unsqueeze(-1) / (mask.sum(-1)[:, None, None] * 3)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-7)


def test_collapsed_router_has_balance_loss_near_the_number_of_experts() -> None:
    logits = torch.zeros(1, 8, 6)
    logits[..., 2] = 50.0
    assert load_balance_loss(logits.softmax(-1), logits.argmax(-1), torch.ones(1, 8)).item() == pytest.approx(6.0)


def test_router_losses_are_float32_in_bf16_and_under_autocast() -> None:
    logits, mask = random_case(3)
    half = logits.bfloat16()
    exact = half.double()
    lse = exact.exp().sum(-1).log()
    expected = lse[mask].square().mean().item()
    probs = half.float().softmax(-1).bfloat16()
    real = mask.double().unsqueeze(-1)
    share = (functional.one_hot(half.argmax(-1), 6) * real).sum(1) / real.sum(1)
    expected_balance = (6 * share * (probs.double() * real).sum(1) / real.sum(1)).sum(-1).mean().item()
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            z = router_z_loss(half, mask)
            balance = load_balance_loss(probs, half.argmax(-1), mask)
        assert z.dtype == balance.dtype == torch.float32
        assert z.item() == pytest.approx(expected, rel=1e-6)  # bf16 arithmetic would be off by 1e-3
        assert balance.item() == pytest.approx(expected_balance, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_router_computes_in_float32_under_autocast(dtype: torch.dtype) -> None:
    router = Router(StMoeConfig(d_model=64, num_experts=8))
    source = torch.Generator().manual_seed(4)
    with torch.no_grad():
        router.weight.normal_(generator=source)
    x = torch.randn(5, 64, generator=source).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = router(x)
    assert logits.dtype == torch.float32
    expected = x.double() @ router.weight.detach().double().T
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)


def test_router_in_bf16_rounds_inputs_weights_and_logits() -> None:
    router = Router(StMoeConfig(d_model=64, num_experts=8, router_precision="bf16"))
    source = torch.Generator().manual_seed(4)
    with torch.no_grad():
        router.weight.normal_(generator=source)
    x = torch.randn(500, 64, generator=source)
    logits = router(x)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, logits.bfloat16().float())
    expected = x.bfloat16().double() @ router.weight.detach().bfloat16().double().T
    # Half a unit of bf16's last place, 2^-9 to 2^-8 of the logit, from the exact product of the rounded.
    torch.testing.assert_close(logits.double(), expected, rtol=2**-8, atol=1e-3)
    (grad,) = torch.autograd.grad(logits.sum(), router.weight)
    assert grad.dtype == torch.float32


def test_norm_takes_the_mean_square_in_float32() -> None:
    source = torch.Generator().manual_seed(7)
    x = (torch.randn(50, 512, generator=source) * 30).bfloat16()
    norm = RMSNorm(512, 1e-6)
    assert norm.scale is not None
    torch.nn.init.normal_(norm.scale, generator=source)
    norm.to(torch.bfloat16)
    y, exact = norm(x), x.double()
    expected = exact / (exact.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.scale.detach().double()
    assert y.dtype == torch.bfloat16
    # Rounded once, at the end: half a unit of bf16's last place, 2^-9 to 2^-8. Sums in bf16 are off by 1e-2 and more.
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_and_z_equal_torch(dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(5)
    logits = (torch.randn(3, 7, 20, generator=source) * 3).to(dtype)
    labels = torch.randint(0, 20, (3, 7), generator=source)
    labels[0, 3:] = labels[2] = -100
    cross_entropy, z = cross_entropy_and_z(logits, labels, (labels != -100).sum())
    exact = logits.double()
    expected = functional.cross_entropy(exact.flatten(0, 1), labels.flatten(), ignore_index=-100)
    assert cross_entropy.dtype == z.dtype == torch.float32
    assert cross_entropy.item() == pytest.approx(expected.item(), rel=1e-6)
    assert z.item() == pytest.approx(exact.logsumexp(-1)[labels != -100].square().mean().item(), rel=1e-6)


def test_no_target_at_all_is_finite() -> None:
    model, batch = make_model(num_experts=4), make_batch()
    output = model(**batch | {"labels": torch.full_like(batch["labels"], -100)})
    assert output.cross_entropy.item() == 0
    assert torch.isfinite(output.loss)


def test_model_reports_the_largest_logit_of_all_its_routers() -> None:
    model, batch = make_model(num_experts=4), make_batch()
    routers = [module for module in model.modules() if isinstance(module, Router)]
    assert len(routers) == 4
    for largest in range(4):
        with torch.no_grad():
            for index, router in enumerate(routers):
                router.weight.fill_(0.0 if index != largest else 1.0)  # each logit is the sum of the input
        logits: list[Tensor] = []
        handle = routers[largest].register_forward_hook(lambda _, __, output, kept=logits: kept.append(output))
        output = model(**batch)
        handle.remove()
        is_encoder = largest < 2
        mask = batch["attention_mask"].bool() if is_encoder else batch["labels"] != -100
        assert output.max_router_logit.item() == max(logits[0][mask].max().item(), 0.0)


def make_model(**options: Any) -> StMoeForConditionalGeneration:
    sizes = {"vocab_size": 64, "d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 4}
    moe = {"sparse_step": 2, "group_size": 8, "second_policy": "all", "min_capacity": 2, "router_z_coefficient": 0.1}
    config = StMoeConfig(**sizes | moe | {"load_balance_coefficient": 0.1, "output_z_coefficient": 0.01} | options)
    model = StMoeForConditionalGeneration(config).train()
    initialize_weights(model, config, seed=0)
    return model


def make_batch() -> dict[str, Tensor]:
    """Two micro-batches of two rows; the first has far more padding. Every group of 8 tokens is one row."""
    source = torch.Generator().manual_seed(6)
    inputs = torch.randint(2, 64, (4, 8), generator=source)
    labels = torch.randint(2, 64, (4, 8), generator=source)
    for row, (length, targets) in enumerate([(3, 2), (2, 1), (8, 8), (7, 6)]):
        inputs[row, length:], labels[row, targets:] = 0, -100
    return {"input_ids": inputs, "attention_mask": (inputs != 0).long(), "labels": labels}


@pytest.mark.parametrize("num_experts", [0, 3])
def test_micro_batches_with_divisors_equal_the_global_batch(num_experts: int) -> None:
    batch = make_batch()
    whole = make_model(num_experts=num_experts)
    expected = whole(**batch)
    expected.loss.backward()
    if num_experts:
        assert expected.dropped_fraction > 0  # the case covers dropped tokens
    counts = LossDivisors(
        encoder=batch["attention_mask"].sum().float() / 2, decoder=(batch["labels"] != -100).sum().float() / 2
    )
    split = make_model(num_experts=num_experts)
    parts = [
        split(**{k: v[rows] for k, v in batch.items()}, loss_divisors=counts) for rows in (slice(0, 2), slice(2, 4))
    ]
    loss = torch.stack([part.loss for part in parts]).mean()
    loss.backward()
    for key in ("loss", "cross_entropy", "load_balance_loss", "router_z_loss", "output_z_loss"):
        mean = sum(part[key].item() for part in parts) / 2
        assert mean == pytest.approx(expected[key].item(), rel=1e-5, abs=1e-7), key
    for (name, mine), theirs in zip(split.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)
    # Without divisors each micro-batch divides by its own tokens, which is the well-known error.
    naive = [split(**{k: v[rows] for k, v in batch.items()}).loss for rows in (slice(0, 2), slice(2, 4))]
    assert abs(torch.stack(naive).mean().item() - expected.loss.item()) > 1e-3


def test_dropped_fraction_counts_all_sparse_layers() -> None:
    model, batch = make_model(num_experts=3, train_capacity_factor=0.4), make_batch()
    tokens, unserved = 0, 0

    def count(_: Any, inputs: tuple[Tensor, Tensor, Any], outputs: tuple[Tensor, Any]) -> None:
        # A dropped token is known by its output, exactly 0.
        nonlocal tokens, unserved
        tokens += int(inputs[1].sum())
        unserved += int((inputs[1] & (outputs[0] == 0).all(-1)).sum())

    for module in model.modules():
        if isinstance(module, SparseFeedForward):
            module.register_forward_hook(count)
    fraction = model(**batch).dropped_fraction.item()
    assert tokens == 2 * (3 + 2 + 8 + 7) + 2 * (2 + 1 + 8 + 6)
    assert 0 < unserved < tokens
    assert fraction == pytest.approx(unserved / tokens, rel=1e-6)


def test_sum_reduction_is_layers_times_mean() -> None:
    batch = make_batch()
    mean, total = (make_model(num_experts=3, router_loss_reduction=kind)(**batch) for kind in ("mean", "sum"))
    layers = 2 + 2  # indices 1 and 3 of the encoder and of the decoder
    for key in ("load_balance_loss", "router_z_loss"):
        assert total[key].item() == pytest.approx(layers * mean[key].item(), rel=1e-6)
    for output in (mean, total):
        parts = output.cross_entropy + 0.1 * output.load_balance_loss + 0.1 * output.router_z_loss
        assert output.loss.item() == pytest.approx((parts + 0.01 * output.output_z_loss).item(), rel=1e-6)


def plain_cross_entropy_and_z(logits: Tensor, labels: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor]:
    """The same terms from whole float64 logits, by autograd."""
    real = labels != -100
    log_z = logits.double().logsumexp(-1)
    target = logits.double().gather(-1, labels.masked_fill(~real, 0).unsqueeze(-1)).squeeze(-1)
    return ((log_z - target) * real).sum() / divisor, (log_z.square() * real).sum() / divisor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, 700, 1 << 20])
def test_blocks_of_logits_give_the_terms_and_gradients_of_all_at_once(
    block: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.losses.CPU_BLOCK", block)
    source = torch.Generator().manual_seed(0)
    logits = (8 * torch.randn(3, 11, 97, generator=source)).to(dtype).requires_grad_()
    labels = torch.randint(0, 97, (3, 11), generator=source)
    labels[1, 4:] = -100
    divisor = torch.tensor(29.0)
    weights = torch.tensor([0.7, 1e-4])
    found = cross_entropy_and_z(logits, labels, divisor)
    expected = plain_cross_entropy_and_z(logits, labels, divisor)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert mine.item() == pytest.approx(theirs.item(), rel=1e-6)
    (mine,) = torch.autograd.grad((weights * torch.stack(found)).sum(), logits)
    (theirs,) = torch.autograd.grad((weights * torch.stack(expected)).sum(), logits)
    assert mine.dtype == dtype
    assert (mine[1, 4:] == 0).all()
    relative = 1e-6 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(mine.double(), theirs.double(), rtol=relative, atol=1e-7)


def test_no_tensor_holds_all_logits_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(64, 16, 128).bfloat16().requires_grad_()
    monkeypatch.setattr("model.losses.CPU_BLOCK", logits.numel() // 8)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.dtype == torch.float32:
                largest = max(largest, out.numel())
            return out

    with Watch():
        terms = cross_entropy_and_z(logits, torch.zeros(64, 16, dtype=torch.int64), torch.tensor(1.0))
        torch.stack(terms).sum().backward()
    assert 0 < largest <= logits.numel() // 8
