import pytest
import torch
from torch.nn import functional

from model.moe.router_product import CPU_BLOCK, router_product


@pytest.mark.parametrize("tokens", [1, CPU_BLOCK, 2 * CPU_BLOCK + 3])
def test_it_is_the_float32_product_of_inputs_in_low_precision(tokens: int):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, tokens, 24, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(6, 24, generator=generator).requires_grad_()
    grad = torch.randn(1, tokens, 6, generator=generator)
    logits = router_product(x, weight)
    assert logits.dtype == torch.float32
    found = (logits, *torch.autograd.grad(logits, (x, weight), grad))

    x64, weight64 = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    logits64 = functional.linear(x64, weight64)
    grad_x, grad_weight = torch.autograd.grad(logits64, (x64, weight64), grad.double())
    for value, reference in zip(found, (logits64, grad_x.bfloat16(), grad_weight), strict=True):
        # a gradient half-way between two bf16 numbers may be rounded to either
        torch.testing.assert_close(
            value.double(), reference.double(), rtol=2**-8 if value is found[1] else 1e-5, atol=1e-5
        )


def test_no_copy_in_float32_is_kept():
    x = torch.randn(4, 8).bfloat16().requires_grad_()
    weight = torch.randn(3, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append((t.dtype, t.numel())) or t, lambda t: t):
        router_product(x, weight)
    assert sorted(kept, key=str) == [(torch.bfloat16, 32), (torch.float32, 24)]
