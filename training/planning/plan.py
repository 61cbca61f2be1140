"""The plan of a configuration on a number of GPUs: everything that is known before the first of them is rented."""

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from model.size import ParameterCounts, parameter_counts
from training.config.checks import give_advice
from training.config.run import RunConfig
from training.planning.activations import Activations, activations_of
from training.planning.activations import Moment as KeptMoment
from training.planning.advice import advise
from training.planning.cards import Card
from training.planning.layout import Layout
from training.planning.states import States, states_of
from training.planning.times import Checkpoint, Flops, Times, checkpoint_of, flops_of, times_of
from training.planning.traffic import Traffic, traffic_of

MFU = 0.4  # assumed, where none is measured
RESERVED = 2 * 2**30  # of a card: CUDA's context, NCCL's and cuBLAS's buffers, what the allocator loses
FILE_SYSTEM_GBS = 2.0  # GB/s that a node writes to the file system


@dataclass(frozen=True)
class Moment:
    """What a GPU holds at one time of a step, in bytes by part."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


class Assumptions(NamedTuple):
    """What a plan cannot know."""

    rate: float = MFU  # see ``times_of``
    rate_source: str = "assumed"
    reserved: int = RESERVED
    file_system_gbs: float = FILE_SYSTEM_GBS  # of a node
    warnings: tuple[str, ...] = ()  # about these


@dataclass(frozen=True)
class Plan:
    """Every figure of a configuration on a layout of cards; bytes, seconds, FLOPs."""

    layout: Layout
    card: Card
    steps: int
    parameters: ParameterCounts
    flops: Flops
    states: States
    activations: Activations
    activations_kept: int  # peak without recomputation
    activations_recomputed: int  # peak with it
    moments: tuple[Moment, ...]
    reserved: int
    traffic: Traffic
    times: Times
    checkpoint: Checkpoint
    host_of_rank: int  # pinned copies of checkpoints and states that ZeRO moves to the host
    warnings: tuple[str, ...]

    @property
    def peak(self) -> Moment:
        """The moment of the most memory."""
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def needed(self) -> int:
        """Bytes that a card must have."""
        return self.peak.total + self.reserved

    @property
    def missing(self) -> int:
        """Bytes that the card lacks; 0 if the layout fits."""
        return max(0, self.needed - self.card.memory)

    @property
    def fits(self) -> bool:
        """Whether the card has enough memory."""
        return not self.missing

    def as_row(self) -> dict[str, Any]:
        """Return every figure for JSON; docs/planning.md explains the names."""
        return {
            "layout": asdict(self.layout) | {"nodes": self.layout.nodes},
            "card": asdict(self.card),
            "parameters": asdict(self.parameters),
            "flops": asdict(self.flops),
            "memory": {
                "states_bytes": self.states.as_row(),
                "activations_bytes": self.activations.parts | {"peak": self.activations.peak},
                "activations_kept_bytes": self.activations_kept,
                "activations_recomputed_bytes": self.activations_recomputed,
                "moments_bytes": {
                    moment.name: moment.parts | {"reserved": self.reserved, "total": moment.total + self.reserved}
                    for moment in self.moments
                },
                "reserved_bytes": self.reserved,
                "needed_bytes": self.needed,
                "card_bytes": self.card.memory,
                "missing_bytes": self.missing,
            },
            "traffic": self.traffic.as_row(self.layout, self.card),
            "times": self.times.as_row(),
            "checkpoint": self.checkpoint.as_row(),
            "host_of_rank_bytes": self.host_of_rank,
            "steps": self.steps,
            "fits": self.fits,
            "warnings": list(self.warnings),
        }


def make_plan(config: RunConfig, layout: Layout, card: Card, assumptions: Assumptions = Assumptions()) -> Plan:  # noqa: B008
    """Return the plan.

    Args:
        config: the run's.
        layout: see ``Layout.of``.
        card: of all GPUs.
        assumptions: see there.

    Raises:
        ConfigError: the DeepSpeed file is broken.
    """
    states, traffic = states_of(config, layout), traffic_of(config, layout)
    activations = activations_of(config, layout)
    others = activations_of(config, replace(layout, recompute=not layout.recompute)).peak
    kept, recomputed = (others, activations.peak) if layout.recompute else (activations.peak, others)
    times = times_of(config, layout, card, traffic, rate=assumptions.rate, rate_source=assumptions.rate_source)
    checkpoint = checkpoint_of(config, layout, assumptions.file_system_gbs * layout.nodes)
    return Plan(
        layout=layout,
        card=card,
        steps=config.training.steps,
        parameters=parameter_counts(config.architecture()),
        flops=flops_of(config, layout),
        states=states,
        activations=activations,
        activations_kept=kept,
        activations_recomputed=recomputed,
        moments=tuple(moments_of(states, activations)),
        reserved=assumptions.reserved,
        traffic=traffic,
        times=times,
        checkpoint=checkpoint,
        host_of_rank=checkpoint.copy_of_rank + states.host,
        warnings=(*assumptions.warnings, *advise(config, layout, card, times), *give_advice(config)),
    )


def moments_of(states: States, activations: Activations) -> list[Moment]:
    """Return the times of a step at which memory can be highest.

    - ``backward begins``: all activations, and gradients of earlier micro-batches of the step; or ``backward of`` a
      block ``begins``, if activations and the gradients that are there by then are more.
    - ``backward ends``: no activations but the gradients of all parameters, the buffers, what is being reduced.
    - ``optimizer steps``: reduced gradients, and their copies for the optimizer.
    """
    grown = states.backward_gradients - states.carried_gradients  # in proportion to the weights that are done

    def gradients(moment: KeptMoment) -> int:
        return states.carried_gradients + grown * moment.weights // activations.weights

    highest = max(activations.moments, key=lambda moment: moment.bytes + gradients(moment))
    name = "backward begins" if highest.where == "loss" else f"backward of {highest.where} begins"
    kept = {"weights": states.weights, "master": states.master, "optimizer": states.optimizer}
    live = {"gathered": states.live, "buckets": states.buckets}
    begins = kept | live | {"gradients": gradients(highest), "activations": highest.bytes}
    ends = kept | live | {"gradients": states.backward_gradients, "reduction": states.reduction}
    steps = kept | {"gradients": states.gradients, "copies": states.step}
    if states.gradients == states.carried_gradients:  # buffers that stay, as those of ZeRO 3
        steps |= {"buckets": states.buckets}
    found = ((name, begins), ("backward ends", ends), ("optimizer steps", steps))
    return [Moment(name, {part: size for part, size in parts.items() if size}) for name, parts in found]
