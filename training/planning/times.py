"""Time of a step and of a run, size and time of a checkpoint, memory of a host."""

from dataclasses import dataclass
from typing import Any

from model.flops import forward_flops
from training.config.run import RunConfig
from training.planning.cards import Card
from training.planning.cost import example_lengths
from training.planning.groups import held_parameters
from training.planning.layout import Layout
from training.planning.step import parts_of
from training.planning.traffic import Kind, Traffic

KINDS: tuple[Kind, ...] = ("all_to_all", "all_reduce", "reduce_scatter", "all_gather")
DAY = 86_400


@dataclass(frozen=True)
class Flops:
    """FLOPs of the whole model, counted as ``model.flops`` does: every capacity slot, filled or not."""

    forward_of_example: float
    training_of_example: float  # forward and backward pass once
    training_of_token: float  # per position, encoder and decoder together
    training_of_step: float  # of the global batch
    executed_of_step: float  # with the forward passes that recomputation repeats


@dataclass(frozen=True)
class Times:
    """Seconds of a step on every GPU at once, and what they add up to; a prediction (``training.planning.step``)."""

    mfu: float  # model FLOPs utilization: useful FLOPs of a step as a share of what the cards' peak could do meanwhile
    rate: float  # FLOPs as a share of the peak while computing, those of recomputation too
    rate_source: str
    compute: float  # of a step, at that rate
    launches: float  # of a step's kernels, by the host, while GPUs compute
    links: dict[Kind, float]  # of a step: how long the links of a GPU are busy, at least
    communication: float  # of a step: as much of it as GPUs wait for
    optimizer: float  # its step
    step: float  # the longer of compute and launches, communication, and the optimizer
    run: float  # all steps of the configuration, without evaluations and checkpoints
    tokens_per_second: float  # positions of all GPUs
    gpu_hours: float

    @property
    def links_total(self) -> float:
        """Seconds of a step in which links are busy, if they do one thing at a time."""
        return sum(self.links.values())

    @property
    def days(self) -> float:
        """Of the run."""
        return self.run / DAY

    def as_row(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {
            "mfu": self.mfu,
            "rate": self.rate,
            "rate_source": self.rate_source,
            "compute_seconds": self.compute,
            "launches_seconds": self.launches,
            "communication_seconds": self.communication,
            "optimizer_seconds": self.optimizer,
            "links_seconds": self.links | {"total": self.links_total},
            "step_seconds": self.step,
            "run_seconds": self.run,
            "days": self.days,
            "gpu_hours": self.gpu_hours,
            "tokens_per_second": self.tokens_per_second,
        }


def flops_of(config: RunConfig, layout: Layout) -> Flops:
    """Count FLOPs of an example, a token and a step."""
    inputs, targets = example_lengths(config.data)
    counted = forward_flops(config.architecture(), layout.micro_batch_size, inputs, targets)
    micro_batches = layout.gpus * layout.accumulation
    useful = counted.training() / layout.micro_batch_size
    return Flops(
        forward_of_example=counted.total / layout.micro_batch_size,
        training_of_example=useful,
        training_of_token=useful / (inputs + targets),
        training_of_step=counted.training() * micro_batches,
        executed_of_step=counted.training(recomputed=layout.recompute) * micro_batches,
    )


def rate_of(config: RunConfig, mfu: float) -> float:
    """Return the rate, see ``times_of``, of a run that has measured an MFU: recomputation is no useful work."""
    counted = forward_flops(config.architecture(), config.training.micro_batch_size, *example_lengths(config.data))
    return mfu * counted.training(recomputed=config.training.activation_checkpointing) / counted.training()


def times_of(
    config: RunConfig, layout: Layout, card: Card, traffic: Traffic, *, rate: float, rate_source: str = "assumed"
) -> Times:
    """Return the times of a step and of the run.

    The compute of a step takes ``executed FLOPs / (GPUs x peak x rate)``. The rate is the MFU of a run without
    recomputation; one that is measured end to end includes the communication that did not overlap with compute there.
    What else a step takes is added to it, see ``training.planning.step.parts_of``.

    Args:
        config: the run's.
        layout: the parallel layout.
        card: whose peak and bandwidths count.
        traffic: of a step.
        rate: see above, more than 0 and at most 1.
        rate_source: where it is from.
    """
    flops = flops_of(config, layout)
    peak = card.flops_per_second(layout.precision) * layout.gpus
    compute = flops.executed_of_step / (peak * rate)
    links = {kind: traffic.seconds_of(kind, layout, card) for kind in KINDS}
    parts = parts_of(config, layout, compute, links)
    step = parts.together
    tokens = layout.global_batch_size * sum(example_lengths(config.data))
    run = step * config.training.steps
    return Times(
        mfu=flops.training_of_step / (peak * step),
        rate=rate,
        rate_source=rate_source,
        compute=compute,
        launches=parts.launches,
        links=links,
        communication=parts.communication,
        optimizer=parts.optimizer,
        step=step,
        run=run,
        tokens_per_second=tokens / step,
        gpu_hours=run * layout.gpus / 3600,
    )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of all ranks, and the copies that are made of it in host memory."""

    bytes: int
    seconds: float  # to write it, in parallel from all nodes
    copy_of_rank: int  # bytes of host memory that a rank keeps for a copy of its part, that of the mean rank

    def as_row(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {"bytes": self.bytes, "seconds": self.seconds, "copy_of_rank_bytes": self.copy_of_rank}


def checkpoint_of(config: RunConfig, layout: Layout, gb_per_second: float) -> Checkpoint:
    """Return size and time of a checkpoint, and the host memory that it takes.

    It holds fp32 weights, frozen ones too, and the optimizer's state, each element once
    (``training.checkpoint.capture``). If ``training.save_in_background``, a rank keeps a copy of what it writes in
    host memory (``training.checkpoint.host_copies``).

    Args:
        config: the run's.
        layout: the parallel layout.
        gb_per_second: GB/s that all ranks together write to the file system.
    """
    held, optimizer = held_parameters(config, layout), config.optimizer
    size = sum(4 * one.shape.numel for one in held)
    for one in held:
        if not one.trained:
            continue
        if optimizer.name != "adafactor":
            size += 2 * (4 if optimizer.name == "adamw" else 1) * one.shape.numel
            continue
        if one.is_factored(optimizer.min_dim_size_to_factor):
            size += 4 * (one.shape.numel // one.unit_numel) * sum(one.unit_shape)
        else:
            size += 4 * one.shape.numel
        size += 4 * one.shape.numel if optimizer.beta1 else 0
    copy = -(-size // layout.gpus) if config.training.save_in_background else 0
    return Checkpoint(size, size / (gb_per_second * 1e9), copy)
