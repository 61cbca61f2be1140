"""What the files of a run tell of its course."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.paths import no_folder
from training.monitoring.columns import (
    CHECKPOINT,
    CROSS_ENTROPY,
    ERROR,
    GUARD,
    ROUTING,
    SCORE,
    STEP,
    STEP_SECONDS,
    TOKENS,
    TRAIN,
    VALIDATION,
    split_of,
)
from training.monitoring.standing import standing_rows
from training.run.folder import RunFolder

Row = dict[str, Any]
Points = tuple[list[float], list[float]]


class NoRunError(ValueError):
    """A folder holds no run; one line."""


@dataclass
class History:
    """The rows of a run that stand, by split, and what it says of itself.

    Attributes:
        path: of the run folder.
        label: which tells it from the other runs on a page.
        config: ``config.yaml``; empty if it cannot be read.
        summary: ``summary.json``; empty of a run that has not finished.
        rows: by split, in their order.
    """

    path: Path
    label: str
    config: dict[str, Any]
    summary: dict[str, Any]
    rows: dict[str, list[Row]] = field(default_factory=dict)

    @property
    def last_step(self) -> int:
        """The newest step of any row; 0 without rows."""
        return max((int(row[STEP]) for rows in self.rows.values() for row in rows), default=0)

    @property
    def planned_steps(self) -> str:
        """The steps of the configuration, as text."""
        steps = self.config.get("training", {}).get("steps")
        return f"{steps:,}" if isinstance(steps, int) else "?"

    @property
    def is_unfinished(self) -> bool:
        """Whether there is no readable summary."""
        return not self.summary

    def of(self, split: str) -> list[Row]:
        """Return the rows of a split."""
        return self.rows.get(split, [])

    def columns(self, split: str = TRAIN) -> set[str]:
        """Return the columns that any row of a split has."""
        return {key for row in self.of(split) for key in row}

    def layers(self, statistic: str, split: str = TRAIN) -> list[str]:
        """Return the layers, or domains, of which rows of a split have a statistic; layers of the encoder first."""
        names = [key.partition("/")[2] for key in self.columns(split) if key.startswith(f"{statistic}/")]
        return sorted(names, key=layer_order)

    def points(self, column: str, split: str, position: "Position") -> Points:
        """Return x and y of a column, without what is not finite.

        Args:
            column: whose values are y.
            split: of the rows.
            position: gives x of a step.
        """
        xs, ys = [], []
        for row in self.of(split):
            value = number(row.get(column))
            x = position(row[STEP])
            if math.isfinite(value) and math.isfinite(x):
                xs.append(x)
                ys.append(value)
        return xs, ys

    def last(self, column: str, split: str = TRAIN) -> float:
        """Return the newest value of a column; NaN if there is none."""
        return next((number(row[column]) for row in reversed(self.of(split)) if row.get(column) is not None), math.nan)


Position = Callable[[float], float]


def number(value: Any) -> float:
    """Return a number of a row; NaN for null, text and lists."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def layer_order(name: str) -> tuple[bool, int, str]:
    """Sort ``encoder_9``, ``encoder_10``, ``decoder_1`` as the network has them."""
    stack, _, block = name.rpartition("_")
    return (stack != "encoder", int(block) if block.isdecimal() else 0, name)


def read_history(run: Path) -> History:
    """Read a run, finished or not. Raises NoRunError: the folder holds no run."""
    folder = RunFolder(run)
    if not run.is_dir():
        raise NoRunError(no_folder(run, str(run), "name a run folder, such as runs/tiny"))
    if not folder.config_file.is_file() and not folder.metrics_file.is_file():
        raise NoRunError(
            f"{run} is no run folder, such as runs/tiny: it has neither {folder.config_file.name} nor "
            f"{folder.metrics_file.name}"
        )
    history = History(run, run.resolve().name, folder.saved_config(), folder.summary() or {})
    for row in standing_rows(folder.metrics_file):
        if math.isfinite(number(row[STEP])):
            history.rows.setdefault(split_of(row), []).append(row)
    return history


def thinned(xs: list[float], ys: list[float], most: int = 1000) -> Points:
    """Return at most ``most`` points (an even number) of a curve, lowest and highest of every bucket among them."""
    if len(xs) <= most:
        return xs, ys
    kept: list[int] = []
    buckets = most // 2
    for bucket in range(buckets):
        indices = range(bucket * len(xs) // buckets, (bucket + 1) * len(xs) // buckets)
        kept += sorted({min(indices, key=ys.__getitem__), max(indices, key=ys.__getitem__)})
    return [xs[i] for i in kept], [ys[i] for i in kept]


def tell_apart(histories: Sequence[History]) -> None:
    """Give runs of the same name the paths as labels."""
    names = [history.label for history in histories]
    for history in histories:
        if names.count(history.label) > 1:
            history.label = str(history.path)


def by_step(history: History) -> Position:
    """Place a row at its step."""
    return float


def by_tokens(history: History) -> Position:
    """Place a row at the millions of tokens trained on until its step."""
    steps, tokens = [0.0], [0.0]
    for row in history.of(TRAIN):
        _extend(steps, tokens, row[STEP], number(row.get(TOKENS)) / 1e6)
    return _interpolation(steps, tokens)


def by_hours(history: History) -> Position:
    """Place a row at the hours spent in training steps until its step: pauses and evaluations do not count."""
    steps, hours = [0.0], [0.0]
    for row in history.of(TRAIN):
        _extend(steps, hours, row[STEP], hours[-1] + (row[STEP] - steps[-1]) * number(row.get(STEP_SECONDS)) / 3600)
    return _interpolation(steps, hours)


def _extend(steps: list[float], values: list[float], step: float, value: float) -> None:
    if step > steps[-1] and math.isfinite(value):
        steps.append(step)
        values.append(value)


def _interpolation(steps: list[float], values: list[float]) -> Position:
    """Between the steps linear, beyond the last one constant; NaN if nothing is known."""
    import numpy

    if len(steps) == 1:
        return lambda _: math.nan
    return lambda step: float(numpy.interp(step, steps, values))


def final_figures(history: History) -> dict[str, float]:
    """Return the numbers by which runs are compared, NaN for what is not known."""
    summary = history.summary
    speeds = sorted(speed for row in history.of(TRAIN) if math.isfinite(speed := number(row.get("tokens_per_second"))))
    utilizations = sorted(mfu for row in history.of(TRAIN) if math.isfinite(mfu := number(row.get("mfu"))))
    return {
        "steps": history.last_step or number(summary.get("steps")),
        "tokens": history.last(TOKENS),
        "validation cross-entropy, nats": history.last(CROSS_ENTROPY, VALIDATION),
        **{
            f"validation cross-entropy of {domain}, nats": history.last(f"{CROSS_ENTROPY}/{domain}", VALIDATION)
            for domain in history.layers(CROSS_ENTROPY, VALIDATION)
        },
        "score, mean of all tasks, %": history.last(SCORE, VALIDATION),
        **{
            f"score of {task}, %": history.last(f"{SCORE}/{task}", VALIDATION)
            for task in history.layers(SCORE, VALIDATION)
        },
        "validation perplexity": math.exp(min(history.last(CROSS_ENTROPY, VALIDATION), 700.0)),
        "unigram cross-entropy, nats": number(summary.get("unigram_cross_entropy")),
        "training cross-entropy, nats": history.last(CROSS_ENTROPY),
        "dropped tokens, %": 100 * history.last("dropped_fraction"),
        "parameters": number(summary.get("parameters_total")),
        "parameters active per token": number(summary.get("parameters_active_per_token")),
        "tokens/s, median": speeds[len(speeds) // 2] if speeds else math.nan,
        "MFU, median, %": 100 * utilizations[len(utilizations) // 2] if utilizations else math.nan,
        "peak memory, GiB": history.last("peak_memory_bytes") / 2**30,
        "hours in training steps": by_hours(history)(history.last_step),
        "ranks": number(summary.get("world_size")),
        "guard decisions": float(len(history.of(GUARD))),
        "checkpoints": float(sum(ERROR not in row for row in history.of(CHECKPOINT))),
    }


def newest_loads(history: History) -> dict[str, list[float]]:
    """Return the newest load of each layer's experts, shares that add up to 1; layers in the order of the network."""
    found: dict[str, list[float]] = {}
    for row in history.of(ROUTING):
        for key, value in row.items():
            if (
                key.startswith("load/")
                and isinstance(value, list)
                and value
                and all(map(math.isfinite, map(number, value)))
            ):
                found[key.removeprefix("load/")] = [number(share) for share in value]
    return {layer: found[layer] for layer in sorted(found, key=layer_order)}
