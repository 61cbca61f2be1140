"""FLOPs counted from the configuration equal what torch counts while the model runs."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.config import StMoeConfig
from model.flops import ForwardFlops, buffer_rows, equal_flops_width, feed_forward_flops, forward_flops
from model.moe.layer import SparseFeedForward
from model.st_moe import StMoeForConditionalGeneration

SIZES: dict[str, Any] = {
    "vocab_size": 256, "d_model": 64, "d_ff": 96, "d_kv": 8, "num_heads": 4, "num_layers": 4, "sparse_step": 2,
    "num_experts": 4, "min_capacity": 1, "group_size": 64,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "dense": {"num_experts": 0},
    "dense ReLU": {"num_experts": 0, "feed_forward": "relu"},
    "sparse": {},
    "one choice": {"top_n": 1, "train_capacity_factor": 1.0},
    "shallow decoder": {"num_decoder_layers": 2},
    "extra feed-forwards": {"extra_feed_forward": "after"},
    "ReLU experts": {"feed_forward": "relu"},
    "expert choice": {"gating": "expert_choice"},
    "flaxformer": {"gating": "flaxformer"},
    "odd groups": {"group_size": 40},
    "all requests": {"capacity": "dropless", "second_policy": "all"},
}
SEQUENCES, INPUTS, TARGETS = 4, 32, 16


def product_flops(_: Any, left: Any, right: Any, **__: Any) -> int:
    """Of ``addmm_``, from the shapes of its arguments."""
    return 2 * left[0] * left[1] * right[1]


def measured(
    options: dict[str, Any], *, backward: bool = False, recomputed: bool = False, autocast: bool = False
) -> int:
    """FLOPs of one call of a model, with its backward pass or without, as torch counts them."""
    model = StMoeForConditionalGeneration(StMoeConfig(**SIZES | options)).train()
    for module in model.modules():
        if isinstance(module, SparseFeedForward):  # as on a device: all capacity slots
            vars(module)["_skips_empty_slots"] = lambda _: False
    if recomputed:
        model.activation_checkpointing_enable()
    batch = {
        "input_ids": torch.randint(2, 256, (SEQUENCES, INPUTS)), "labels": torch.randint(2, 256, (SEQUENCES, TARGETS))
    }  # fmt: skip
    # The counter knows attention only in its form for GPUs: as plain products, it is counted. Nor does it know addmm_.
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product_flops}) as counter,
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(**batch).loss
        if backward:
            loss.backward()
    return counter.get_total_flops()


def counted(options: dict[str, Any]) -> ForwardFlops:
    return forward_flops(StMoeConfig(**SIZES | options), SEQUENCES, INPUTS, TARGETS)


@pytest.mark.parametrize("name", MODELS)
def test_the_forward_pass(name: str):
    assert counted(MODELS[name]).total == measured(MODELS[name])


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["dense", "sparse", "ReLU experts", "expert choice", "all requests"])
def test_both_passes(name: str, autocast: bool):
    assert counted(MODELS[name]).training() == measured(MODELS[name], backward=True, autocast=autocast)


@pytest.mark.parametrize("options", [{}, {"dropout_rate": 0.1}, {"extra_feed_forward": "none"}, {"num_experts": 0}])
def test_recomputation(options: dict[str, Any]):
    found = measured(options, backward=True, recomputed=True)
    assert counted(options).training(recomputed=True) == pytest.approx(found, rel=0.01)
    assert found > 1.1 * counted(options).training()


def test_served_rows_count_and_padding_of_the_capacity_does_not():
    config = StMoeConfig(**SIZES)
    all_rows = buffer_rows(config, SEQUENCES, INPUTS, TARGETS)
    assert all_rows == 4 * (2 * 2 * int(64 * 1.25 / 4) + 2 * 1 * int(64 * 1.25 / 4))  # experts, layers, groups, slots
    served = forward_flops(config, SEQUENCES, INPUTS, TARGETS, expert_rows=100)
    assert counted({}).total - served.total == (all_rows - 100) * feed_forward_flops(config)
    evaluated = buffer_rows(config, SEQUENCES, INPUTS, TARGETS, training=False)
    assert evaluated == 4 * (2 * 2 + 2 * 1) * 32


@given(
    st.fixed_dictionaries(
        {
            "d_ff": st.integers(4, 64).map(lambda eighths: 8 * eighths),
            "num_experts": st.sampled_from([2, 4, 8]),
            "top_n": st.sampled_from([1, 2]),
            "train_capacity_factor": st.sampled_from([0.5, 1.0, 1.25, 2.0]),
            "sparse_step": st.sampled_from([1, 2, 4]),
            "extra_feed_forward": st.sampled_from(["none", "before", "after"]),
            "feed_forward": st.sampled_from(["geglu", "relu"]),
        }
    )
)
@settings(max_examples=15, deadline=None)
def test_a_twin_of_equal_flops(options: dict[str, Any]):
    wanted = counted(options).total
    twin = SIZES | options | {"num_experts": 0}
    width = equal_flops_width(StMoeConfig(**twin), wanted, SEQUENCES, INPUTS, TARGETS, multiple=2)
    assert width % 2 == 0
    flops = [counted(twin | {"d_ff": width + change}).total for change in (-2, 0, 2)]
    assert abs(flops[1] - wanted) <= min(0.01 * wanted, abs(flops[0] - wanted), abs(flops[2] - wanted))


@pytest.mark.parametrize("twin", [{"num_experts": 0}, {"top_n": 3, "train_capacity_factor": 2.0}])
def test_torch_counts_equal_flops_for_a_twin(twin: dict[str, Any]):
    wanted = measured({})
    width = equal_flops_width(StMoeConfig(**SIZES | twin), wanted, SEQUENCES, INPUTS, TARGETS, multiple=2)
    assert measured(twin | {"d_ff": width}) == pytest.approx(wanted, rel=0.01)


def test_no_width_is_near_enough():
    with pytest.raises(ValueError, match=r"no model.d_ff that is a multiple of 8 gives 1000 FLOPs within 1%"):
        equal_flops_width(StMoeConfig(**SIZES), 1000, SEQUENCES, INPUTS, TARGETS)
