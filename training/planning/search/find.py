"""The search: every candidate is checked as a run is, planned, and ordered by the predicted time of a step."""

from dataclasses import asdict, dataclass
from typing import Any

from training.config.run import RunConfig
from training.planning.activations import activations_of
from training.planning.cards import Card
from training.planning.gathers import gather
from training.planning.groups import ZeroOptions, held_parameters
from training.planning.layout import Layout, check_nodes, checked_layout
from training.planning.plan import Assumptions, Moment, moments_of
from training.planning.search.candidates import candidates, overrides
from training.planning.search.reasons import Reason, Refused, TooLarge, check_reasons, memory_reasons
from training.planning.states import States, states_of
from training.planning.times import Times, times_of
from training.planning.traffic import traffic_of

# What the host needs to launch the kernels of a block, however few tokens they work on: measured were 103 ms for the
# forward and 207 ms for the backward pass of the 48 blocks of ST-MoE-L on an H100, in 3,300 launches, and no less for
# an eighth of the micro-batch (benchmarks/README.md).
FORWARD_LAUNCHES, BACKWARD_LAUNCHES, LAUNCH = 0.103 / 48, 0.207 / 48, 0.310 / 3300
# The optimizer's step of Adafactor, on the same GPU: 45 ms for 1.2 billion parameters.
STEP_OF_PARAMETER = 0.045 / 1.198e9
# A prediction is no more exact than this: of layouts whose times differ by less, other properties decide.
CLOSE = 1.05
SPARE = 0.1  # of a card's memory, that a layout should leave


@dataclass(frozen=True)
class Found:
    """A layout that fits; bytes on one GPU, seconds of a step."""

    config: RunConfig  # that chooses it
    layout: Layout
    needed: int
    peak: Moment
    times: Times
    seconds: float  # predicted, see ``predict``
    memory: int  # of the card

    @property
    def preference(self) -> tuple[bool, bool, bool, int]:
        """Of layouts that are equally fast the smallest: memory to spare, no recomputation, experts within a node."""
        tight = self.needed > (1 - SPARE) * self.memory
        return tight, self.layout.recompute, not self.layout.experts_within_node, self.needed

    def as_row(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {
            "layout": asdict(self.layout),
            "overrides": overrides(self.config),
            "needed_bytes": self.needed,
            "peak": self.peak.name,
            "peak_bytes": self.peak.parts | {"reserved": self.needed - self.peak.total},
            "predicted_step_seconds": self.seconds,
            "compute_seconds": self.times.compute,
            "links_seconds": self.times.links,
        }


@dataclass(frozen=True)
class Search:
    """Every layout of a configuration on a number of cards."""

    gpus: int
    card: Card
    fits: list[Found]  # the best first
    too_large: list[Reason]
    refused: list[Refused]

    @property
    def tried(self) -> int:
        """Layouts that were considered."""
        grouped = [reason.layouts for reason in self.too_large] + [reason.layouts for reason in self.refused]
        return len(self.fits) + sum(grouped)

    def as_row(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {
            "gpus": self.gpus,
            "card": asdict(self.card),
            "tried": self.tried,
            "fits": [found.as_row() for found in self.fits],
            "too_large": [reason.as_row() for reason in self.too_large],
            "refused": [reason.as_row() for reason in self.refused],
        }


def search(
    config: RunConfig,
    gpus: int,
    card: Card,
    *,
    gpus_per_node: int = 8,
    assumptions: Assumptions = Assumptions(),  # noqa: B008
) -> Search:
    """Return all layouts of a configuration on ``gpus`` cards.

    Raises:
        ConfigError: see ``candidates`` and ``training.planning.layout.check_nodes``.
    """
    check_nodes(gpus, gpus_per_node, "--gpus")
    fits, too_large, messages = [], [], []
    states: dict[tuple[Any, ...], States] = {}
    for candidate in candidates(config, gpus):
        try:
            layout = checked_layout(candidate, gpus, gpus_per_node)
        except ValueError as error:
            messages.append(str(error))
            continue
        held = (layout.zero_stage, layout.expert_parallel_size, layout.accumulation > 1)
        if held not in states:
            states[held] = states_of(candidate, layout)
        moments = moments_of(states[held], activations_of(candidate, layout))
        peak = max(moments, key=lambda moment: moment.total)
        needed = peak.total + assumptions.reserved
        if needed > card.memory:
            parts = peak.parts | {"reserved": assumptions.reserved}
            too_large.append(TooLarge(layout, peak.name, parts, card.memory))
            continue
        traffic = traffic_of(candidate, layout)
        times = times_of(candidate, layout, card, traffic, rate=assumptions.rate, rate_source=assumptions.rate_source)
        seconds = predict(candidate, layout, times)
        fits.append(Found(candidate, layout, needed, peak, times, seconds, card.memory))
    return Search(gpus, card, best_first(fits), memory_reasons(too_large), check_reasons(messages))


def best_first(fits: list[Found]) -> list[Found]:
    """Order layouts by their predicted time and, where it is close, by what is worth more than the difference.

    The next is, of those that are left and at most ``CLOSE`` times as slow as the fastest of them, the first by
    ``Found.preference``.
    """
    left = sorted(fits, key=lambda found: (found.seconds, found.preference))
    ordered = []
    while left:
        close = [found for found in left if found.seconds <= CLOSE * left[0].seconds]
        best = min(close, key=lambda found: found.preference)
        left.remove(best)
        ordered.append(best)
    return ordered


def predict(config: RunConfig, layout: Layout, times: Times) -> float:
    """Return the seconds of a step by which layouts are ordered: compute, launches, and communication that is seen.

    - A micro-batch takes the longer of its compute (with the FLOPs of recomputation) and the host's launches, under
      ZeRO 3 with at least one more for every parameter that is gathered.
    - Nothing else can be done during the all-to-all but, with chunks, the experts of another chunk.
    - Gradients are reduced, and under ZeRO 3 weights are gathered, while passes compute where the DeepSpeed file says
      ``overlap_comm`` (ZeRO 2 and 3): what takes longer than the compute is seen.
    - Otherwise, and for the weights that ZeRO 1 and 2 gather after the optimizer's step, GPUs wait.
    - The optimizer steps the parameters of a GPU's partition, without ZeRO all that it holds.
    """
    model, links, overlaps = config.architecture(), times.links, False
    assert model.num_decoder_layers is not None
    launches = (1 + layout.recompute) * FORWARD_LAUNCHES + BACKWARD_LAUNCHES
    launches *= model.num_layers + model.num_decoder_layers
    during, after = links["all_reduce"] + links["reduce_scatter"], links["all_gather"]
    if layout.zero_stage == 3:
        launches += LAUNCH * len(gather(config, layout).in_micro_batch)
        during, after = during + after, 0.0
    if layout.zero_stage >= 2:
        overlaps = ZeroOptions.of(config, layout).overlap
    busy = max(times.compute, layout.accumulation * launches)
    waits = after + (max(0.0, during - busy) if overlaps else during)
    trained = [one for one in held_parameters(config, layout) if one.trained]
    waits += STEP_OF_PARAMETER * sum(one.partition_numel if layout.zero_stage else one.numel for one in trained)
    return busy + waits + links["all_to_all"] / layout.all_to_all_chunks
