"""Names what is not finite after a step whose gradient is not: router logits by layer, weights, gradients."""

from collections.abc import Callable
from typing import Any

import deepspeed.comm as dist
import torch
from torch import Tensor, nn

from model.losses import LossDivisors
from model.moe.router import Router
from training.checkpoint.finite import some, weights_not_finite
from training.engine.randomness import seed_everything


def diagnose(engine: Any, batch: dict[str, Tensor], divisors: LossDivisors, *key: int | str) -> str:
    """Return one line for users; collective over all ranks. Leaves gradients behind: the run must end after it.

    Args:
        engine: the DeepSpeed engine.
        batch: a micro-batch of the step that failed, on the engine's device.
        divisors: of the losses.
        key: of the step's randomness: seed, step, rank.
    """
    found: dict[str, set[str]] = {"router logits": set(), "weights": set(), "gradients": set()}
    found["weights"].update(weights_not_finite(engine))
    hooks = []
    for name, module in engine.module.named_modules():
        if isinstance(module, Router):
            hooks.append(module.register_forward_hook(_noting(found["router logits"], name)))
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            hooks.append(parameter.register_hook(_noting_gradient(found["gradients"], name)))
    seed_everything("train", *key, 0)
    engine.backward(engine(**batch, loss_divisors=divisors).loss)
    for hook in hooks:
        hook.remove()
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, found)
    return "; ".join(
        f"not finite among {kind}: {some(sorted(set().union(*(rank[kind] for rank in ranks))))}" for kind in found
    )


def _noting(names: set[str], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(_module: nn.Module, _inputs: Any, logits: Tensor) -> None:
        if not torch.isfinite(logits).all():
            names.add(name)

    return hook


def _noting_gradient(names: set[str], name: str) -> Callable[[Tensor], None]:
    def hook(gradient: Tensor) -> None:
        if not torch.isfinite(gradient).all():
            names.add(name)

    return hook
