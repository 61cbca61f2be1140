"""One optimizer update from a global batch, and one pass over held-out batches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from training.engine.batches import GlobalCounts, count_tokens
from training.engine.randomness import seed_everything
from training.monitoring.metrics import PartsMean


def update(
    engine: Any, batches: list[dict[str, Tensor]], pad_id: int, *key: int | str, flags: Sequence[int] = ()
) -> tuple[PartsMean, GlobalCounts]:
    """Forward and backward over this rank's micro-batches, then one step of the optimizer; collective.

    The losses' sums are divided by the real tokens of the global batch, so that the mean that DeepSpeed takes over
    micro-batches and ranks is the loss of the global batch, however its tokens are spread.

    Args:
        engine: the DeepSpeed engine, whose gradient accumulation steps are ``len(batches)``.
        batches: ``input_ids``, ``labels`` on the engine's device.
        pad_id: of the inputs.
        key: what this update's randomness depends on: seed, step and rank; the micro-batch is added.
        flags: see ``count_tokens``.
    """
    counts = count_tokens(batches, pad_id, flags)
    parts = PartsMean()
    for micro, batch in enumerate(batches):
        seed_everything("train", *key, micro)
        output = engine(**batch, loss_divisors=counts.mean)
        engine.backward(output.loss)
        engine.step()
        parts.add(output)
    return parts, counts


@torch.no_grad()
def evaluate(engine: Any, batches: list[dict[str, Tensor]], pad_id: int, *key: int | str) -> PartsMean:
    """The objective's parts on held-out batches, with evaluation's capacity and without dropout; collective."""
    counts = count_tokens(batches, pad_id)
    parts = PartsMean()
    engine.eval()
    for micro, batch in enumerate(batches):
        seed_everything("validation", *key, micro)
        parts.add(engine(**batch, loss_divisors=counts.mean))
    engine.train()
    return parts
