"""Tasks of users: rows with two texts, described in the configuration rather than in the registry."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.sources.retry import DataError
from data.tasks.metrics.classes import accuracy
from data.tasks.metrics.generation import bleu, rouge
from data.tasks.metrics.questions import squad
from data.tasks.sources.base import Row
from data.tasks.task import TRAIN, Answers, Format, Metric, Pair, Task

INPUTS, TARGETS = "inputs", "targets"
SPLITS = (TRAIN, "validation")


def _squad_of_one(
    references: Sequence[str], predictions: Sequence[str], groups: Sequence[Hashable]
) -> dict[str, float]:
    """Return ``em`` and ``f1`` against the one target of each row."""
    return squad([[reference] for reference in references], predictions, groups)


METRICS: dict[str, Metric] = {"accuracy": accuracy, "squad": _squad_of_one, "rouge": rouge, "bleu": bleu}


@dataclass(frozen=True)
class OwnRows:
    """Rows of the pairs of texts that a function reads."""

    pairs: Callable[[str], Sequence[Pair]]
    origin: str = "data.task_files"
    license: str = "of the user"
    splits: tuple[str, ...] = SPLITS

    def load(self, task: str, split: str, folder: str | Path | None) -> Sequence[Row]:
        """See ``RowSource``; raises what ``pairs`` raises."""
        return [{INPUTS: inputs, TARGETS: targets} for inputs, targets in self.pairs(split)]


def own_task(
    name: str,
    pairs: Callable[[str], Sequence[Pair]],
    metrics: Sequence[str] = ("accuracy",),
    labels: Sequence[str] = (),
) -> Task:
    """Return the task of a user's rows.

    Args:
        name: of the task.
        pairs: gives the (inputs, targets) of a split, ``train`` or ``validation``.
        metrics: names of ``METRICS``.
        labels: the texts of the classes, of which every target must be one; empty: targets are any text.
    """
    texts = tuple(map(_spaced, labels))

    def right(row: Row) -> Any:
        text = _spaced(row[TARGETS])
        if not texts:
            return text
        if text not in texts:
            raise DataError(f"the target {row[TARGETS]!r} is none of its labels {', '.join(texts)}")
        return texts.index(text)

    def read(text: str, row: Row) -> Any:
        said = _spaced(text)
        if not texts:
            return said
        return texts.index(said) if said in texts else -1

    answers = Answers(read, right, (lambda row: texts) if texts else None, texts or None)
    pattern = Format((INPUTS, TARGETS), "the inputs as they are", lambda row: [(row[INPUTS], row[TARGETS])])
    return Task(name, OwnRows(pairs), pattern, answers, tuple(METRICS[metric] for metric in metrics))


def _spaced(text: str) -> str:
    """Single spaces: the pieces of a vocabulary keep no others."""
    return " ".join(text.split())
