"""Counts of parameters without building the model."""

from typing import Any

import pytest

from model.config import StMoeConfig
from model.size import count_parameters
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
