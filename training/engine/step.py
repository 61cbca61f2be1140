"""One optimizer step on a global batch, and one pass over held-out batches."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from data.streaming.validation import DOMAIN
from training.engine.batches import StepTotals, total_over_ranks
from training.engine.clock import Clock
from training.engine.loss_terms import LossTerms
from training.engine.randomness import seed_everything


def update(
    engine: Any,
    batches: list[dict[str, Tensor]],
    pad_id: int,
    *key: int | str,
    signals: Mapping[str, int] | None = None,
    clock: Clock | None = None,
    observed: bool = False,
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
        clock: times the phases ``forward``, ``backward`` (with the reduction of gradients) and ``optimizer``.
        observed: whether the terms get the statistics of the routers.
    """
    totals = total_over_ranks(batches, pad_id, signals)
    terms = LossTerms()
    phase = clock.phase if clock is not None else nullcontext
    if observed:
        engine.module.observe_routers(True)
    for micro, batch in enumerate(batches):
        seed_everything("train", *key, micro)
        with phase("forward"):
            output = engine(**batch, loss_divisors=totals.divisors)
        with phase("backward"):
            engine.backward(output.loss)
        with phase("optimizer"):
            engine.step()
        terms.add(output)
    if observed:
        engine.module.observe_routers(False)
    return terms, totals


@torch.no_grad()
def evaluate(engine: Any, batches: list[dict[str, Tensor]], pad_id: int, *key: int | str) -> LossTerms:
    """Return the objective's terms on held-out batches, with evaluation capacity and no dropout; collective.

    Args:
        engine: the DeepSpeed engine.
        batches: ``input_ids``, ``labels`` and, where domains are reported, ``DOMAIN``, int64 [B].
        pad_id: of the inputs.
        key: what the randomness depends on; the micro-batch is appended.
    """
    divisors = total_over_ranks(batches, pad_id).divisors
    terms = LossTerms()
    engine.eval()
    for micro, batch in enumerate(batches):
        seed_everything("validation", *key, micro)
        fields = {name: tensor for name, tensor in batch.items() if name != DOMAIN}
        output = engine(**fields, loss_divisors=divisors)
        terms.add(output)
        if DOMAIN in batch:
            terms.add_domains(output, batch["labels"], batch[DOMAIN])
    engine.train()
    return terms
