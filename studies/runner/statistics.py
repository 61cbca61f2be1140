"""What several seeds of one configuration gave together."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from studies.runner.runs import Result


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error, None of a single value."""

    value: float
    error: float | None

    def __str__(self) -> str:
        return f"{self.value:.3f}" if self.error is None else f"{self.value:.3f} ± {self.error:.3f}"


@dataclass(frozen=True)
class Summary:
    """The seeds of one variant. Means are over the stable runs; None without one."""

    runs: int
    over: int
    stable: int
    quality: Mean | None
    router_z_loss: Mean | None
    max_router_logit: Mean | None
    spikes: int

    @property
    def fraction(self) -> str:
        """``4/6``, of the runs that are over; with what is missing, if anything is."""
        missing = self.runs - self.over
        return f"{self.stable}/{self.over}" + (f" ({missing} unfinished)" if missing else "")


@dataclass(frozen=True)
class Pair:
    """Two runs that differ in one thing, at the same seed."""

    seed: int
    cross_entropy: tuple[float, float]
    router_z_loss: tuple[float, float]


def mean_of(values: Sequence[float]) -> Mean | None:
    """Mean and standard error (sample standard deviation over the root of the count)."""
    if not values:
        return None
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return Mean(statistics.fmean(values), error)


def summarize(results: Sequence[Result]) -> Summary:
    """The seeds of one variant together."""
    stable = [result for result in results if result.status == "stable"]
    return Summary(
        runs=len(results),
        over=sum(result.status != "unfinished" for result in results),
        stable=len(stable),
        quality=mean_of([result.quality for result in stable if result.quality is not None]),
        router_z_loss=mean_of([result.router_z_loss for result in stable if result.router_z_loss is not None]),
        max_router_logit=mean_of([result.max_router_logit for result in stable if result.max_router_logit is not None]),
        spikes=sum(result.verdict.spikes for result in results),
    )


def by_variant(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results of each variant, in the order of their first appearance."""
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.variant, []).append(result)
    return grouped


def pairs(results: Sequence[Result], first: str, second: str) -> list[Pair]:
    """The seeds at which both variants ran to the end, stable or not."""
    found = []
    complete = {(r.variant, r.seed): r for r in results if r.quality is not None and r.router_z_loss is not None}
    for (variant, seed), one in complete.items():
        other = complete.get((second, seed))
        if variant == first and other is not None:
            assert one.quality is not None and other.quality is not None
            assert one.router_z_loss is not None and other.router_z_loss is not None
            found.append(Pair(seed, (-one.quality, -other.quality), (one.router_z_loss, other.router_z_loss)))
    return sorted(found, key=lambda pair: pair.seed)
