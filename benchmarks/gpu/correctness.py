"""Step 4: the model on this device against float32 on the CPU, and its host reads."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.results import Report
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.sparse_layer import relative_error
from model.config import StMoeConfig
from model.initialization import initialize_weights
from model.kernels.available import torch_only
from model.st_moe import StMoeForConditionalGeneration

SMALL: dict[str, Any] = {
    "vocab_size": 512, "d_model": 128, "d_ff": 256, "d_kv": 32, "num_heads": 4, "num_layers": 4, "num_experts": 4,
    "sparse_step": 2, "group_size": 256,
}  # fmt: skip
TOY: dict[str, Any] = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2}  # the rehearsal's: a CPU emulates bf16
VARIANTS: dict[str, dict[str, Any]] = {  # those with a policy draw nothing, so that devices compute the same
    "top-2": {"second_policy": "all"},
    "top-2, random": {},
    "top-2, threshold, prioritized": {"second_policy": "threshold", "batch_prioritized": True},
    "flaxformer": {"gating": "flaxformer"},
    "expert choice": {"gating": "expert_choice"},
    "relu": {"feed_forward": "relu", "second_policy": "all"},
    "dropless": {"capacity": "dropless", "second_policy": "all"},
    "dense": {"num_experts": 0},
}
READS = ("dropless",)  # the host needs the number of rows there


def make_model(setting: Setting, options: dict[str, Any], device: str | None = None) -> StMoeForConditionalGeneration:
    """Build a small model with the same weights on every device, that of the setting if none is named."""
    config = StMoeConfig(**SMALL | setting.pick({}, TOY) | options)
    model = StMoeForConditionalGeneration(config)
    initialize_weights(model, config, seed=0)
    return model.to(device or setting.device).train()


def make_batch(setting: Setting, device: str, vocabulary: int = 512) -> dict[str, Tensor]:
    """Draw ``input_ids`` and ``labels`` with padding at the end of some sequences."""
    sequences, inputs, targets = setting.pick((8, 192, 64), (2, 16, 8))
    generator = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(2, vocabulary, (sequences, inputs), generator=generator),
        "labels": torch.randint(2, vocabulary, (sequences, targets), generator=generator),
    }
    batch["input_ids"][1::3, -inputs // 4 :] = 0
    batch["labels"][2::3, -targets // 4 :] = -100
    return {name: tensor.to(device) for name, tensor in batch.items()}


def outputs(
    model: StMoeForConditionalGeneration, batch: dict[str, Tensor], *, autocast: bool = False
) -> dict[str, Tensor]:
    """Return loss, logits and all gradients of a step, on the CPU."""
    model.zero_grad(set_to_none=True)
    device = batch["input_ids"].device.type
    torch.manual_seed(0)
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        output = model(**batch)
    output.loss.backward()
    found = {"loss": output.loss, "logits": output.logits}
    found |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: tensor.detach().float().cpu() for name, tensor in found.items()}


def differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Return relative errors: of the loss, the logits, all gradients as one vector, and the worst single gradient."""
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    gradients = [name for name in expected if name not in ("loss", "logits")]
    whole = [torch.cat([of[name].flatten() for name in gradients]) for of in (found, expected)]
    return {
        "loss": relative_error(found["loss"], expected["loss"]),
        "logits": relative_error(found["logits"], expected["logits"]),
        "gradients": relative_error(*whole),
        "worst gradient": max(relative_error(found[name], expected[name]) for name in gradients),
    }


def check_model(setting: Setting, report: Report) -> None:
    """Compare devices, precisions and recomputation; look for host reads."""
    batches = {device: make_batch(setting, device) for device in ("cpu", setting.device)}
    names = [name for name in VARIANTS if name != "top-2, random"]
    for name in names[: setting.pick(None, 1)]:
        with report.part(f"{name}: this device against the CPU"):
            report.require(3)
            options = VARIANTS[name]
            single = outputs(make_model(setting, options), batches[setting.device])
            found = differences(single, outputs(make_model(setting, options, "cpu"), batches["cpu"]))
            report.value(f"{name}, fp32 against the CPU", found)
            report.below(f"{name}, fp32 against the CPU: loss, logits, gradients", max(list(found.values())[:3]), 1e-4)
    for name in ("top-2", "dense"):
        with report.part(f"{name}: autocast against fp32"):
            report.require(3)
            model = make_model(setting, VARIANTS[name])
            found = differences(
                outputs(model, batches[setting.device], autocast=True), outputs(model, batches[setting.device])
            )
            report.value(f"{name}, autocast against fp32", found)
            report.below(f"{name}, autocast against fp32: loss", found["loss"], 1e-2)
    with report.part("kernels against torch operations"):
        model, batch = make_model(setting, VARIANTS["top-2"]), batches[setting.device]
        found_by_kernels = outputs(model, batch, autocast=True)
        with torch_only():
            found = differences(found_by_kernels, outputs(model, batch, autocast=True))
        report.value("top-2, kernels against torch operations", found)
        report.below("top-2, kernels against torch operations: loss", found["loss"], 1e-2)
    with report.part("checkpointing"):
        report.require(3)
        check_checkpointing(setting, report, batches[setting.device])
    with report.part("host reads"):
        report.require(3)
        check_host_reads(setting, report, batches[setting.device])


def check_checkpointing(setting: Setting, report: Report, batch: dict[str, Tensor]) -> None:
    """Compare a step with recomputation to one without, beside the same step done twice; with dropout."""
    model = make_model(setting, {"dropout_rate": 0.1})
    plain, again = (outputs(model, batch, autocast=True) for _ in range(2))
    model.gradient_checkpointing_enable()
    recomputed = outputs(model, batch, autocast=True)
    noise = differences(again, plain)  # a GPU may add in another order
    report.value("the same step twice", noise)
    found = differences(recomputed, plain)
    report.value("with recomputation against without", found)
    limit = max(1e-3, 5 * noise["gradients"])
    report.below("recomputation: loss, logits, gradients", max(list(found.values())[:3]), limit)


@contextlib.contextmanager
def no_host_reads(setting: Setting) -> Iterator[None]:
    """Raise where the host waits for the device; a CPU shows nothing."""
    if not setting.cuda:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_host_reads(setting: Setting, report: Report, batch: dict[str, Tensor]) -> None:
    """Run forward and backward of every variant under CUDA's synchronization check."""
    report.value("synchronization is checked", setting.cuda)
    for name, options in VARIANTS.items():
        if name in READS:
            continue
        model = make_model(setting, options)
        with report.part(f"{name}: host reads"):
            for checked in (False, True):  # the first call makes handles and workspaces
                model.zero_grad(set_to_none=True)
                with no_host_reads(setting) if checked else contextlib.nullcontext():
                    with torch.autocast(setting.kind, torch.bfloat16):
                        loss = model(**batch).loss
                    loss.backward()
            report.check(f"{name}: host reads", 0, "0", True)
