"""Statistics over the seeds of a variant."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from studies.runner.runs import Result


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error, which is None for a single value."""

    value: float
    error: float | None

    def __str__(self) -> str:
        return f"{self.value:.3f}" if self.error is None else f"{self.value:.3f} ± {self.error:.3f}"


@dataclass(frozen=True)
class Summary:
    """The runs of one variant; means are over the stable ones."""

    runs: int
    over: int  # runs that are stable or diverged
    stable: int
    quality: Mean | None  # see Result; None without a stable run
    metrics: dict[str, Mean]  # of every metric that a stable run has
    spikes: int  # of all runs

    @property
    def fraction(self) -> str:
        """Stable runs out of the finished ones, as ``4/6``, and the number of unfinished ones, if any."""
        missing = self.runs - self.over
        return f"{self.stable}/{self.over}" + (f" ({missing} unfinished)" if missing else "")


def mean_of(values: Sequence[float]) -> Mean | None:
    """Return the mean and its standard error (sample standard deviation / sqrt(count)); None without values."""
    if not values:
        return None
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return Mean(statistics.fmean(values), error)


def summarize(results: Sequence[Result]) -> Summary:
    """Summarize the runs of one variant."""
    stable = [result for result in results if result.status == "stable"]
    keys = dict.fromkeys(key for result in stable for key in result.metrics)
    means = {key: mean_of([result.metrics[key] for result in stable if key in result.metrics]) for key in keys}
    return Summary(
        runs=len(results),
        over=sum(result.status != "unfinished" for result in results),
        stable=len(stable),
        quality=mean_of([result.quality for result in stable if result.quality is not None]),
        metrics={key: mean for key, mean in means.items() if mean is not None},
        spikes=sum(result.verdict.spikes for result in results),
    )


def by_variant(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Group results by variant, in the order of first appearance."""
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.variant, []).append(result)
    return grouped


def as_row(record: Result | Summary, metrics: Sequence[str]) -> dict[str, Any]:
    """Return the fields of ``record`` for JSON, with the named metrics (None if missing) in place of the dict."""
    row: dict[str, Any] = {}
    for key, value in asdict(record).items():
        row |= {name: value.get(name) for name in metrics} if key == "metrics" else {key: value}
    return row
