"""Attention never runs in cuDNN's kernel, whose gradients may be NaN; on a CPU it has derivatives of its own."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from model.config import StMoeConfig
from model.layers.biased_attention import attend_with_bias
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
    monkeypatch.setattr("model.layers.attention.needs_bias_gradient", lambda *_: False)  # as on a device
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


@pytest.mark.parametrize("heads", [1, 3])  # of the bias: one for all, or one each
@pytest.mark.parametrize("sequences", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_attention_with_a_bias_equals_torch_in_float64(dtype: torch.dtype, sequences: int, heads: int) -> None:
    source = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4), (sequences, heads, 5, 7)]
    given = [torch.randn(shape, generator=source).to(dtype) for shape in shapes]
    given[3][..., 5:] = torch.finfo(dtype).min  # masked keys
    grad = torch.randn(2, 3, 5, 4, generator=source).to(dtype)
    own = [t.clone().requires_grad_() for t in given]
    theirs = [t.double().requires_grad_() for t in given]
    y = attend_with_bias(*own)
    q, k, v, bias = theirs
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
    assert y.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    actual = [y, *torch.autograd.grad(y, own, grad)]
    wanted = [expected, *torch.autograd.grad(expected, theirs, grad.double())]
    for a, e in zip(actual, wanted, strict=True):
        assert (a.double() - e).abs().max() <= tolerance * e.abs().max()
