"""Every gating against a float64 numpy reference in the one-hot and cumulative-sum form of the published code.

Sources of the rules, not of the text: mesh_tensorflow/transformer/moe.py ``_top_n_gating`` and ``_router_z_loss``;
flaxformer/architectures/moe/routing.py ``TokensChooseMaskedRouter``, ``ExpertsChooseMaskedRouter`` and moe_layers.py.
"""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.capacity import expert_capacity
from model.config import StMoeConfig
from model.moe.router import Routing, route

Floats = NDArray[np.float64]
GROUPS, SIZE, EXPERTS = 3, 48, 6


def softmax(logits: Floats) -> Floats:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def one_hot(index: NDArray[np.int64], depth: int) -> Floats:
    """Zero where the index is out of range, as in TensorFlow and JAX."""
    return (index[..., None] == np.arange(depth)).astype(np.float64)


def combine_in_order(masks: list[Floats], gates: list[Floats], capacity: int) -> Floats:
    """``[G, S, E, C]`` from one-hot requests ``[G, S, E]`` per choice: what fits, in the order of choice and token."""
    used = np.zeros((len(masks[0]), 1, masks[0].shape[-1]))
    combine = np.zeros((*masks[0].shape, capacity))
    for mask, gate in zip(masks, gates, strict=True):
        position = (np.cumsum(mask, axis=1) - mask + used) * mask
        fits = mask * (position < capacity)
        used = used + fits.sum(1, keepdims=True)
        combine += gate[..., None, None] * fits[..., None] * one_hot(position.astype(np.int64), capacity)
    return combine


def mtf_top_n(
    logits: Floats, real: Floats, top_n: int, capacity: int, policy: str, threshold: float
) -> tuple[Floats, Floats, float]:
    """Mesh-TensorFlow's combine tensor, its balance loss of each group ``[G]``, and its z-loss."""
    raw = softmax(logits)
    rest, masks, gates = raw.copy(), [], []
    for _ in range(top_n):
        best = rest.argmax(-1)
        gates.append(rest.max(-1) * real)
        masks.append(one_hot(best, raw.shape[-1]) * real[..., None])
        rest = rest * (1 - masks[-1])
    if top_n > 1:
        total = np.sum(gates, axis=0) + 1e-9
        gates = [gate / total for gate in gates]
    # both means are over the whole group, padding included
    balance = (masks[0].mean(1) * (raw * real[..., None]).mean(1)).mean(-1) * raw.shape[-1] ** 2
    z = (np.log(np.exp(logits).sum(-1)) ** 2 * real).sum() / real.sum()
    for n in range(1, top_n):
        masks[n] = masks[n] * {"all": 1.0, "none": 0.0, "threshold": (gates[n] > threshold)[..., None]}[policy]
    return combine_in_order(masks, gates, capacity), balance, z


def flaxformer_tokens_choose(
    logits: Floats, real: Floats, top_k: int, capacity: int, prioritized: bool
) -> tuple[Floats, Floats]:
    """Combine tensor of flaxformer's router, and the balance loss of each group if only best experts are counted."""
    raw = softmax(logits)
    order = np.argsort(-raw, axis=-1, kind="stable")[..., :top_k]
    gate, mask = np.take_along_axis(raw, order, -1), one_hot(order, raw.shape[-1]) * real[..., None, None]
    best = mask[:, :, 0].mean(1)
    if prioritized:
        permutation = np.argsort(-gate[..., 0] * real, axis=-1, kind="stable")
        mask, gate = (np.take_along_axis(x, permutation.reshape(*permutation.shape, *[1] * (x.ndim - 2)), 1)
                      for x in (mask, gate))  # fmt: skip
    combine = combine_in_order(list(np.moveaxis(mask, 2, 0)), list(np.moveaxis(gate, 2, 0)), capacity)
    if prioritized:
        combine = np.take_along_axis(combine, np.argsort(permutation, axis=-1)[..., None, None], 1)
    return combine, (best * (raw * real[..., None]).mean(1)).sum(-1) * raw.shape[-1]


def experts_choose(logits: Floats, real: Floats, capacity: int) -> Floats:
    """Combine tensor of expert choice: S = softmax, G, I = top-C of S transposed (Zhou et al., section 3.2)."""
    raw = softmax(logits)
    score = np.where(real[..., None] > 0, raw, 0.0).transpose(0, 2, 1)
    index = np.argsort(-score, axis=-1, kind="stable")[..., :capacity]
    gate = np.take_along_axis(score, index, -1)
    return np.einsum("gec,gect->gtec", gate, one_hot(index, raw.shape[1]))


def make_case(padded: bool) -> tuple[Floats, Floats]:
    source = np.random.default_rng(5)
    # an offset shared by the group makes some experts popular; 1/64 is exact in float32, so that nothing is rounded
    offset = source.normal(size=(GROUPS, 1, EXPERTS))
    logits = np.round((source.normal(size=(GROUPS, SIZE, EXPERTS)) * 1.5 + offset) * 64) / 64
    real = (source.random((GROUPS, SIZE)) < 0.7).astype(np.float64) if padded else np.ones((GROUPS, SIZE))
    return logits, real


def run(logits: Floats, real: Floats, *, decoder: bool = False, **options: Any) -> tuple[Routing, Floats]:
    config = StMoeConfig(**{"num_experts": EXPERTS, "min_capacity": 1, "num_layers": 4, **options})
    routing = route(torch.from_numpy(logits), torch.from_numpy(real), config, training=True, decoder=decoder)
    assert routing.capacity == expert_capacity(config, SIZE, training=True, decoder=decoder)
    return routing, routing.dense_combine().double().numpy()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("factor", [0.3, 1.25, 7.0])
@pytest.mark.parametrize("top_n", [1, 2, 3])
@pytest.mark.parametrize("policy", ["all", "none", "threshold"])
def test_top_n_equals_mesh_tensorflow(policy: str, top_n: int, factor: float, padded: bool) -> None:
    logits, real = make_case(padded)
    routing, combine = run(logits, real, top_n=top_n, second_policy=policy, train_capacity_factor=factor)
    assert routing.capacity == max(min(SIZE, int(SIZE * factor / EXPERTS)), 1)
    expected, balance, z = mtf_top_n(logits, real, top_n, routing.capacity, policy, 0.2)
    np.testing.assert_allclose(combine, expected, rtol=0, atol=1e-6)
    assert routing.router_z_loss.item() == pytest.approx(z, abs=1e-5)
    # fraction and mean probability are over a group's real tokens here: each larger by size / real
    assert routing.load_balance_loss.item() == pytest.approx((balance * (SIZE / real.sum(1)) ** 2).mean(), abs=1e-5)
    if factor < 1:
        assert (combine.sum((2, 3)) == 0)[real > 0].any(), "the case has to drop tokens"
    if policy == "threshold" and top_n > 1:
        assert 0 < routing.kept_NGS[1].sum() < routing.kept_NGS[0].sum()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize(("top_n", "factor"), [(1, 0.5), (2, 0.3), (2, 1.25), (3, 1.25), (2, 9.0)])
def test_flaxformer_equals_its_masked_router(top_n: int, factor: float, prioritized: bool, padded: bool) -> None:
    logits, real = make_case(padded)
    options: dict[str, Any] = {"gating": "flaxformer", "batch_prioritized": prioritized}
    routing, combine = run(logits, real, top_n=top_n, train_capacity_factor=factor, **options)
    assert routing.capacity == max(round(factor * SIZE / EXPERTS), 1)
    expected, balance = flaxformer_tokens_choose(logits, real, top_n, routing.capacity, prioritized)
    np.testing.assert_allclose(combine, expected, rtol=0, atol=1e-6)
    assert routing.load_balance_loss.item() == pytest.approx((balance * (SIZE / real.sum(1)) ** 2).mean(), abs=1e-5)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("top_n", "factor"), [(1, 0.5), (2, 0.3), (2, 1.25), (3, 1.25)])
def test_batch_prioritized_top_n_serves_the_most_probable_first(top_n: int, factor: float, padded: bool) -> None:
    logits, real = make_case(padded)
    options: dict[str, Any] = {"top_n": top_n, "second_policy": "all", "train_capacity_factor": factor}
    _, plain = run(logits, real, **options)
    routing, combine = run(logits, real, **options, batch_prioritized=True)
    # the paper's rules on tokens that already stand in order of their best probability
    order = np.argsort(-softmax(logits).max(-1), axis=-1, kind="stable")
    sorted_logits, sorted_real = (np.take_along_axis(x, o, 1) for x, o in ((logits, order[..., None]), (real, order)))
    expected, *_ = mtf_top_n(sorted_logits, sorted_real, top_n, routing.capacity, "all", 0.2)
    back = np.argsort(order, axis=-1)[..., None, None]
    np.testing.assert_allclose(combine, np.take_along_axis(expected, back, 1), rtol=0, atol=1e-6)
    assert np.abs(combine - plain).max() > 0.1
    # a decoder layer of the same model stays left to right
    np.testing.assert_array_equal(run(logits, real, **options, batch_prioritized=True, decoder=True)[1], plain)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("factor", [0.3, 1.25, 2.0, 5.9, 9.0])
def test_expert_choice_equals_zhou_et_al(factor: float, padded: bool) -> None:
    logits, real = make_case(padded)
    routing, combine = run(logits, real, gating="expert_choice", train_capacity_factor=factor)
    assert routing.capacity == min(SIZE, int(SIZE * factor / EXPERTS))
    np.testing.assert_allclose(combine, experts_choose(logits, real, routing.capacity), rtol=0, atol=1e-6)
    assert routing.load_balance_loss.item() == 0
    assert routing.router_z_loss.item() == pytest.approx(mtf_top_n(logits, real, 1, 1, "none", 0)[2], abs=1e-5)
    tokens_of_expert = (combine > 0).sum((1, 3))
    expected = np.minimum(real.sum(1, keepdims=True), routing.capacity)
    np.testing.assert_array_equal(tokens_of_expert, np.broadcast_to(expected, tokens_of_expert.shape))
    if factor == 2.0:
        of_token = (combine > 0).sum((2, 3))
        assert len(np.unique(of_token)) > 3, "tokens have different numbers of experts"


def test_decoder_has_a_gating_of_its_own() -> None:
    logits, real = make_case(padded=True)
    flaxformer = run(logits, real, gating="flaxformer", top_n=2)[1]
    np.testing.assert_array_equal(
        run(logits, real, decoder=True, gating="expert_choice", decoder_gating="flaxformer", top_n=2)[1], flaxformer
    )
    config = StMoeConfig(num_experts=EXPERTS, num_layers=4)
    assert (config.gating, config.decoder_gating) == ("top_n", "top_n")
    assert StMoeConfig(num_experts=EXPERTS, num_layers=4, gating="flaxformer").decoder_gating == "flaxformer"
    assert StMoeConfig(num_experts=EXPERTS, num_layers=4, gating="expert_choice").decoder_gating == "top_n"


@pytest.mark.parametrize(
    ("size", "factor", "top_n", "flaxformer"),
    [(60, 1.25, 12, 12), (61, 1.25, 12, 13), (50, 0.25, 2, 2), (5, 9.0, 5, 8)],
)
def test_capacity_is_truncated_or_rounded(size: int, factor: float, top_n: int, flaxformer: int) -> None:
    # 60 * 1.25 / 6 = 12.5, a half that Python rounds to the even 12; 61: 12.7; 50: 2.08; 5: 7.5, or the group's 5
    for gating, capacity in (("top_n", top_n), ("expert_choice", top_n), ("flaxformer", flaxformer)):
        config = StMoeConfig(
            num_experts=EXPERTS, num_layers=4, min_capacity=1, gating=gating, train_capacity_factor=factor
        )
        assert expert_capacity(config, size, training=True) == capacity
