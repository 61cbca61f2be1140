"""RMSNorm's own derivative against torch's in float64."""

import torch
from torch.nn import functional

from model.layers.norm import RMSNorm


def test_output_and_gradients_equal_torchs_in_float64() -> None:
    source = torch.Generator().manual_seed(0)
    norm = RMSNorm(12, 1e-6)
    x = (torch.randn(2, 3, 12, generator=source) * 5).requires_grad_()
    grad = torch.randn(2, 3, 12, generator=source)
    assert norm.scale is not None
    norm.scale.data.copy_(torch.rand(12, generator=source) + 0.5)
    y = norm(x)
    x64, scale64 = x.detach().double().requires_grad_(), norm.scale.detach().double().requires_grad_()
    expected = functional.rms_norm(x64, (12,), scale64, 1e-6)
    actual = [y, *torch.autograd.grad(y, (x, norm.scale), grad)]
    wanted = [expected, *torch.autograd.grad(expected, (x64, scale64), grad.double())]
    for a, e in zip(actual, wanted, strict=True):
        assert a.dtype == torch.float32
        assert (a.double() - e).abs().max() <= 1e-6 * e.abs().max()
    assert torch.equal(y, norm(x.detach()))  # with and without gradients


def test_weight_and_input_of_other_dtypes_are_torchs() -> None:
    norm = RMSNorm(12, 1e-6)
    assert norm.scale is not None
    norm.scale.data.fill_(1.0)
    x = torch.randn(2, 12, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(norm(x), functional.rms_norm(x, (12,), norm.scale, 1e-6))
