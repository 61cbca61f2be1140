"""One optimizer step on a global batch, and one pass over held-out batches."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from training.engine.batches import StepTotals, total_over_ranks
from training.engine.loss_terms import LossTerms
from training.engine.randomness import seed_everything


def update(
    engine: Any,
    batches: list[dict[str, Tensor]],
    pad_id: int,
    *key: int | str,
    signals: Mapping[str, int] | None = None,
) -> tuple[LossTerms, StepTotals]:
    """Run forward and backward over this rank's micro-batches, then one optimizer step; collective.

    The losses' sums are divided by the real tokens of the global batch, so that DeepSpeed's mean over micro-batches and
    ranks is the loss of the global batch, however its tokens are spread.

    Args:
        engine: the DeepSpeed engine, whose gradient accumulation steps are ``len(batches)``.
        batches: ``input_ids``, ``labels`` on the engine's device.
        pad_id: of the inputs.
        key: what this step's randomness depends on: seed, step and rank; the micro-batch is appended.
        signals: see ``total_over_ranks``.
    """
    totals = total_over_ranks(batches, pad_id, signals)
    terms = LossTerms()
    for micro, batch in enumerate(batches):
        seed_everything("train", *key, micro)
        output = engine(**batch, loss_divisors=totals.divisors)
        engine.backward(output.loss)
        engine.step()
        terms.add(output)
    return terms, totals


@torch.no_grad()
def evaluate(engine: Any, batches: list[dict[str, Tensor]], pad_id: int, *key: int | str) -> LossTerms:
    """Return the objective's terms on held-out batches, with evaluation capacity and no dropout; collective."""
    divisors = total_over_ranks(batches, pad_id).divisors
    terms = LossTerms()
    engine.eval()
    for micro, batch in enumerate(batches):
        seed_everything("validation", *key, micro)
        terms.add(engine(**batch, loss_divisors=divisors))
    engine.train()
    return terms
