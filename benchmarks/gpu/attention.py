"""Step 5: which attention kernels run, and whether cuDNN's backward gives NaN (pytorch issue 196678).

Shape suffixes: B = sequences, Q = query positions, K = key positions, H = heads, D = d_kv, d = d_model.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.accounting import profile
from benchmarks.gpu.results import Report
from benchmarks.gpu.setting import Setting
from model.config import StMoeConfig
from model.layers.attention import Attention, RelativePositionBias, attention_bias

MARKS = ("fmha", "flash", "cudnn", "sdpa", "attention", "softmax")  # in the names of kernels or operators
LOGIT = -120.0  # below -88.7 = -ln(largest float32), where the defect shows


def make_config(setting: Setting) -> StMoeConfig:
    """Return the widths of st_moe_l, or small ones."""
    d, heads, D = setting.pick((1024, 16, 64), (64, 4, 16))
    return StMoeConfig(d_model=d, num_heads=heads, d_kv=D, num_layers=1, d_ff=d)


def operators_of(call: Any, setting: Setting) -> dict[str, Any]:
    """Return the attention operators that a call runs on the CPU, and the attention kernels on the device."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        call()
    names = sorted({e.key for e in profiler.key_averages() if "_scaled_dot_product" in e.key})
    kernels = [kernel for kernel in profile(call, setting.device)["kernels"] if _is_attention(kernel["name"])]
    return {"operators": ", ".join(name.removeprefix("aten::") for name in names), "kernels": kernels}


def _is_attention(name: str) -> bool:
    return any(mark in name.lower() for mark in MARKS)


def check_attention(setting: Setting, report: Report) -> None:
    """Name the kernels of self- and cross-attention, then look for NaN."""
    with report.part("kernels"):
        name_kernels(setting, report)
    lengths = setting.pick((64, 192, 320, 512, 640), (8,))
    for keys in lengths:
        for allowed in (True, False):
            with report.part(f"NaN at {keys} keys"):
                with cudnn_attention(allowed):
                    module, direct = module_nans(setting, keys), direct_nans(setting, keys)
                where = f"{keys} keys, cuDNN {'allowed' if allowed else 'off'}"
                report.value(f"direct call, {where}: gradients not finite", direct)
                wrong = sum(module.values())
                report.check(f"our cross-attention, {where}: gradients not finite", wrong, "0", wrong == 0)


@contextlib.contextmanager
def cudnn_attention(allowed: bool) -> Iterator[None]:
    """Allow or forbid cuDNN's attention; the model's own choice still counts if it forbids it."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(allowed and before)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def name_kernels(setting: Setting, report: Report) -> None:
    """Run both attentions of st_moe_l forward and backward under autocast."""
    config = make_config(setting)
    batch, inputs, targets = setting.pick((4, 512, 114), (2, 16, 8))
    attention = Attention(config, 0).to(setting.device)
    position = RelativePositionBias(config, bidirectional=True).to(setting.device)
    for parameter in (*attention.parameters(), *position.parameters()):
        torch.nn.init.normal_(parameter, std=0.02)
    x = torch.randn(batch, inputs, config.d_model, device=setting.device, requires_grad=True)
    y = torch.randn(batch, targets, config.d_model, device=setting.device, requires_grad=True)
    allowed = torch.ones(batch, 1, 1, inputs, dtype=torch.bool, device=setting.device)
    allowed[0, ..., -inputs // 4 :] = False

    def run_self() -> None:
        with torch.autocast(setting.kind, torch.bfloat16):
            bias = attention_bias(position(inputs, inputs), allowed, torch.bfloat16)
            output = attention(x, bias)
        output.float().square().mean().backward()

    def run_cross() -> None:
        with torch.autocast(setting.kind, torch.bfloat16):
            output = attention(y, attention_bias(None, allowed, torch.bfloat16), x)
        output.float().square().mean().backward()

    for name, call in (("self-attention", run_self), ("cross-attention", run_cross)):
        with report.part(name):
            call()
            found = operators_of(call, setting)
            report.value(name, found["operators"])
            report.value(f"{name}, kernels", found["kernels"])


def module_nans(setting: Setting, keys: int) -> dict[str, int]:
    """Return the elements of gradients that are not finite, with one large logit per head of our cross-attention.

    All inputs are nearly the same, so all logits of a head are; their sign is random, and half of the heads have
    negative ones, of ``LOGIT`` and less.
    """
    config = make_config(setting)
    generator = torch.Generator(setting.device).manual_seed(0)
    attention = Attention(config, 0).to(setting.device)
    with torch.no_grad():
        for parameter in attention.parameters():  # the standard deviation of a logit becomes 4 LOGIT
            parameter.normal_(std=(4 * -LOGIT / config.d_kv**0.5 / config.d_model) ** 0.5, generator=generator)
    base = torch.randn(1, 1, config.d_model, generator=generator, device=setting.device)

    def near_base(length: int) -> Tensor:
        noise = torch.randn(2, length, config.d_model, generator=generator, device=setting.device)
        return (base + 0.01 * noise).requires_grad_()

    x, memory = near_base(setting.pick(keys, 8)), near_base(keys)
    allowed = torch.ones(2, 1, 1, keys, dtype=torch.bool, device=setting.device)
    allowed[0, ..., -keys // 8 :] = False
    with torch.autocast(setting.kind, torch.bfloat16):
        output = attention(x, attention_bias(None, allowed, torch.bfloat16), memory)
    output.backward(torch.randn(output.shape, generator=generator, device=setting.device).to(output.dtype))
    gradients = {"x": x.grad, "memory": memory.grad} | {name: p.grad for name, p in attention.named_parameters()}
    return {name: _not_finite(grad) for name, grad in gradients.items()}


def direct_nans(setting: Setting, keys: int) -> dict[str, int]:
    """Return the same for a direct call of ``scaled_dot_product_attention`` with such logits and a mask."""
    D = setting.pick(64, 16)
    q, k, v = (torch.randn(2, 4, keys, D, device=setting.device).mul(0.1).bfloat16() for _ in range(3))
    q[..., 0], k[..., 0] = 1.0, LOGIT
    for tensor in (q, k, v):
        tensor.requires_grad_()
    mask = torch.zeros(2, 1, 1, keys, dtype=torch.bfloat16, device=setting.device)
    output = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    output.backward(torch.randn_like(output))
    return {name: _not_finite(tensor.grad) for name, tensor in (("q", q), ("k", k), ("v", v))}


def _not_finite(grad: Tensor | None) -> int:
    assert grad is not None
    return int((~grad.isfinite()).sum())
