"""The memory of a real micro-batch on a rank: what is alive of activations in a forward and backward pass."""

import torch
from torch import Tensor

from tests.support.live_bytes import ACTIVATION, ENGINE, GATHERED, GRADIENT, LiveBytes
from training.config.run import RunConfig
from training.engine.batches import total_over_ranks
from training.engine.build import build_engine
from training.planning.cost import example_lengths

KINDS = (ACTIVATION, GATHERED, GRADIENT, ENGINE)


def full_batch(config: RunConfig, seed: int) -> dict[str, Tensor]:
    """Return random ``input_ids`` and ``labels`` of a micro-batch, without padding."""
    generator = torch.Generator().manual_seed(seed)
    size, vocabulary = config.training.micro_batch_size, config.architecture().vocab_size
    inputs, targets = (
        torch.randint(2, vocabulary, (size, length), generator=generator) for length in example_lengths(config.data)
    )
    return {"input_ids": inputs, "labels": targets}


def measure(config: RunConfig, world_size: int) -> dict[str, int]:
    """Train on two micro-batches of one step, and measure the second; collective.

    Returns:
        ``saved``: bytes of activations when the loss is known; for each of ``KINDS``, the most bytes at a time.
    """
    engine = build_engine(config, world_size, "cpu")
    engine.train()
    batches = [full_batch(config, seed) for seed in range(2)]
    divisors = total_over_ranks(batches, 0).divisors
    engine.backward(engine(**batches[0], loss_divisors=divisors).loss)
    engine.step()  # of the micro-batch
    live = LiveBytes(engine.module, [*batches[1].values(), *divisors])
    with live:
        output = engine(**batches[1], loss_divisors=divisors)
        live.mark()
        engine.backward(output.loss)
    live.close()
    engine.destroy()
    return {"saved": live.at_marks(ACTIVATION)[0], **{kind: live.peak(kind) for kind in KINDS}}
