"""The search: every candidate is checked as a run is, planned, and ordered by the predicted time of a step."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from training.config.run import RunConfig
from training.planning.activations import activations_of
from training.planning.cards import Card
from training.planning.layout import Layout, check_nodes, checked_layout
from training.planning.plan import Assumptions, Moment, moments_of
from training.planning.search.candidates import candidates, overrides
from training.planning.search.reasons import Reason, Refused, TooLarge, check_reasons, memory_reasons
from training.planning.states import States, states_of
from training.planning.times import Times, times_of
from training.planning.traffic import traffic_of

# Predictions are no more exact than this: of layouts whose times, or sizes, differ by less, something else decides.
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
    memory: int  # of the card

    @property
    def drawbacks(self) -> tuple[bool, bool, bool]:
        """What is worth more than a little time: no memory to spare, recomputation, experts that leave a node."""
        tight = self.needed > (1 - SPARE) * self.memory
        return tight, self.layout.recompute, not self.layout.experts_within_node

    @property
    def complexity(self) -> tuple[float, ...]:
        """Of layouts that are equal in all else, the first has least of it: ZeRO stage, expert parallelism; memory."""
        return self.layout.zero_stage, self.layout.expert_parallel_size, self.needed, self.times.step

    def as_row(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {
            "layout": asdict(self.layout),
            "overrides": overrides(self.config),
            "needed_bytes": self.needed,
            "peak": self.peak.name,
            "peak_bytes": self.peak.parts | {"reserved": self.needed - self.peak.total},
            "step_seconds": self.times.step,
            "compute_seconds": self.times.compute,
            "launches_seconds": self.times.launches,
            "communication_seconds": self.times.communication,
            "optimizer_seconds": self.times.optimizer,
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
        fits.append(Found(candidate, layout, needed, peak, times, card.memory))
    return Search(gpus, card, best_first(fits), memory_reasons(too_large), check_reasons(messages))


def best_first(fits: Iterable[Found]) -> list[Found]:
    """Order layouts: equally fast ones are a group, and the fastest group is first.

    Within it come first those without ``Found.drawbacks``; of these, groups of the same size, the smallest first; and
    of these the simplest.
    """
    ordered = []
    for as_fast in equals(fits, lambda found: found.times.step):
        for drawbacks in sorted({found.drawbacks for found in as_fast}):
            alike = [found for found in as_fast if found.drawbacks == drawbacks]
            for as_large in equals(alike, lambda found: found.needed):
                ordered += sorted(as_large, key=lambda found: found.complexity)
    return ordered


def equals(found: Iterable[Found], size: Callable[[Found], float]) -> list[list[Found]]:
    """Return groups, in each of which all sizes are at most ``CLOSE`` times the smallest; in order."""
    groups: list[list[Found]] = []
    for one in sorted(found, key=size):
        if groups and size(one) <= CLOSE * size(groups[-1][0]):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups
