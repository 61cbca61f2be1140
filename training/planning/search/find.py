"""The search: every candidate is checked as a run is, planned, and ordered by the predicted time of a step."""

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from training.config.errors import ConfigError
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

# A prediction is no more exact than this: of layouts whose times differ by less, other properties decide.
CLOSE = 1.05
SIZE = 0.1 * 2**30  # bytes: layouts that differ by less, as they are shown, are equally large
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
    def preference(self) -> tuple[float, ...]:
        """Of layouts that are equally fast, the first in this order is best.

        Memory to spare, no recomputation, experts within a node, least memory; and where that is the same, the
        simplest: the lowest ZeRO stage, the smallest expert parallelism.
        """
        tight, layout = self.needed > (1 - SPARE) * self.memory, self.layout
        size = round(self.needed / SIZE)
        simple = layout.zero_stage, layout.expert_parallel_size, self.needed, self.times.step
        return tight, layout.recompute, not layout.experts_within_node, size, *simple

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
    fixed: list[str]  # of the keys that are searched, those that the user has given, as ``key=value``
    fits: list[Found]  # the best first
    too_large: list[Reason]
    nearest: TooLarge | None  # of those that are too large, the one that lacks least
    refused: list[Refused]
    warnings: tuple[str, ...] = ()  # see ``Assumptions``

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
            "fixed": self.fixed,
            "tried": self.tried,
            "fits": [found.as_row() for found in self.fits],
            "too_large": [reason.as_row() for reason in self.too_large],
            "refused": [reason.as_row() for reason in self.refused],
            "warnings": list(self.warnings),
        }


def search(
    config: RunConfig,
    gpus: int,
    card: Card,
    *,
    gpus_per_node: int = 8,
    assumptions: Assumptions = Assumptions(),  # noqa: B008
    given: Collection[str] = (),
) -> Search:
    """Return all layouts of a configuration on ``gpus`` cards.

    Args:
        config: the run's.
        gpus: the world size.
        card: of all GPUs.
        gpus_per_node: see ``training.planning.layout.checked_layout``.
        assumptions: see there.
        given: keys whose values, those of ``config``, all layouts have.

    Raises:
        ConfigError: see ``candidates`` and ``training.planning.layout.check_nodes``; or ``train.py`` would refuse every
            layout.
    """
    check_nodes(gpus, gpus_per_node, "--gpus")
    fits, too_large, messages = [], [], []
    states: dict[tuple[Any, ...], States] = {}
    for candidate in candidates(config, gpus, given):
        try:
            layout = checked_layout(candidate, gpus, gpus_per_node)
        except ValueError as error:
            messages.append(str(error))
            continue
        held = (layout.zero_stage, layout.expert_parallel_size, layout.accumulation > 1, layout.recompute)
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
    fixed = [word for word in overrides(config) if word.partition("=")[0] in given]
    refused = check_reasons(messages)
    if not fits and not too_large:
        raise ConfigError(no_layout(gpus, fixed, refused))
    nearest = min(too_large, key=lambda one: one.over, default=None)
    return Search(
        gpus, card, fixed, best_first(fits), memory_reasons(too_large), nearest, refused, assumptions.warnings
    )


def no_layout(gpus: int, fixed: list[str], refused: list[Refused]) -> str:
    """Return one line on why there is no layout at all: the reason that most have in common."""
    reason = max(refused, key=lambda one: one.layouts)
    held = f" with {' '.join(fixed)}, which --search holds fixed" if fixed else ""
    return f"--gpus {gpus}: there is no layout{held}: {reason.message}"


def best_first(fits: Iterable[Found]) -> list[Found]:
    """Order layouts: by groups of equally fast ones, the fastest first, and within them by ``Found.preference``.

    In a group, all times of a step are at most ``CLOSE`` times the shortest.
    """
    groups: list[list[Found]] = []
    for one in sorted(fits, key=lambda found: found.times.step):
        if groups and one.times.step <= CLOSE * groups[-1][0].times.step:
            groups[-1].append(one)
        else:
            groups.append([one])
    return [one for group in groups for one in sorted(group, key=lambda found: found.preference)]
