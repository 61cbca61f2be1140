"""Attention never runs in cuDNN's kernel, whose gradients may be NaN, and leaves torch's setting as it was."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from model.config import StMoeConfig
from model.st_moe import StMoeForConditionalGeneration
from tests.support.small import SMALL_MODEL, global_batch


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("allowed", [True, False])
def test_cudnn_attention_is_never_allowed(allowed: bool, checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = functional.scaled_dot_product_attention

    def noting(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return original(*args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", noting)
    model = StMoeForConditionalGeneration(StMoeConfig(**SMALL_MODEL)).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(allowed)
    try:
        model(**global_batch(0, 2)).loss.backward()
        assert torch.backends.cuda.cudnn_sdp_enabled() == allowed
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert len(seen) == 12 * (1 + checkpointing)  # four layers with one attention and four with two, computed again
    assert not any(seen)
