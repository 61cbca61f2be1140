"""Counts of parameters without building the model."""

from typing import Any

import pytest
import torch

from model.architecture import Architecture
from model.config import StMoeConfig
from model.size import count_parameters, parameter_counts, parameter_shapes
from model.st_moe import StMoeForConditionalGeneration

SIZES: dict[str, Any] = {"vocab_size": 64, "d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 4}
EXPERT = 3 * 16 * 24  # W_in, W_gate, W_out; one sparse layer in each stack


@pytest.mark.parametrize(
    ("options", "unused_experts"),
    [
        ({"num_experts": 0}, 0),
        ({"num_experts": 8}, 6 + 6),
        ({"num_experts": 8, "top_n": 1, "gating": "flaxformer"}, 7 + 7),
        # a token of the encoder is taken by 1.25 experts on average, one of the decoder has two
        ({"num_experts": 8, "gating": "expert_choice", "train_capacity_factor": 1.25}, 6.75 + 6),
        ({"num_experts": 4, "gating": "expert_choice", "train_capacity_factor": 9.0}, 0 + 2),
    ],
    ids=str,
)
def test_active_parameters_exclude_the_experts_that_a_token_does_not_use(
    options: dict[str, Any], unused_experts: float
) -> None:
    config = StMoeConfig(**SIZES | options)
    total, active = count_parameters(config)
    assert total == sum(p.numel() for p in StMoeForConditionalGeneration(config).parameters())
    assert total - active == unused_experts * EXPERT


@pytest.mark.parametrize(
    "options",
    [
        {"num_experts": 0},
        {"num_experts": 4, "feed_forward_bias": "multiplicative", "num_decoder_layers": 3, "sparse_step": 2},
        {"num_experts": 4, "feed_forward": "relu", "sparse_step": 1, "extra_feed_forward": "none", "top_n": 1},
        {"num_experts": 4, "rms_norm_scale": False, "extra_feed_forward": "before", "feed_forward_bias": "additive"},
        {
            "num_experts": 0,
            "feed_forward": "relu",
            "feed_forward_bias": "additive",
            "relative_attention_num_buckets": 8,
        },
    ],
    ids=str,
)
def test_the_list_of_parameters_is_that_of_the_modules(options: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = StMoeForConditionalGeneration(StMoeConfig(**SIZES | options))
    listed = parameter_shapes(Architecture(**SIZES | options))
    assert [(p.name, p.shape) for p in listed] == [(name, tuple(p.shape)) for name, p in model.named_parameters()]


def test_counts_by_use_make_up_the_total() -> None:
    counts = parameter_counts(Architecture(**SIZES | {"num_experts": 8, "feed_forward_bias": "additive"}))
    assert counts.experts == 2 * 8 * (EXPERT + 24)
    assert counts.router == 2 * 8 * 16
    assert counts.embedding == counts.head == 64 * 16
    assert counts.total == counts.dense + counts.experts + counts.router + counts.embedding + counts.head
    assert parameter_counts(Architecture(**SIZES)).experts == 0
