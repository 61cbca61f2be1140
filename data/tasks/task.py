"""A task: where its rows come from, how a row becomes texts, and what an answer is worth."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.text import counted
from data.sources.retry import DataError
from data.tasks.sources.base import Row, RowSource

Pair = tuple[str, str]
Metric = Callable[[Sequence[Any], Sequence[Any], Sequence[Hashable]], dict[str, float]]
Baseline = Callable[[Sequence[Row], Sequence[Row]], list[str]]

TRAIN = "train"
UNLABELED = "<unk>"  # T5's target of a row without an answer


@dataclass(frozen=True)
class Example:
    """One example of a task.

    Args:
        inputs: text of the encoder.
        targets: text of the decoder.
        row: what it was made of, for post-processing and metrics.
        task: name of its task.
    """

    inputs: str
    targets: str
    row: Row
    task: str


@dataclass(frozen=True)
class Format:
    """How a row becomes examples.

    Args:
        columns: what a row must have.
        pattern: what an input looks like, for people.
        pairs: (inputs, targets) of a row, at least one.
        is_trained_on: whether training uses a row; evaluation uses all rows.
    """

    columns: tuple[str, ...]
    pattern: str
    pairs: Callable[[Row], list[Pair]]
    is_trained_on: Callable[[Row], bool] = lambda row: True


@dataclass(frozen=True)
class Answers:
    """What an answer means, and what it is compared with.

    Args:
        read: what a text means for a row: a class, a number or a text. A text that it returns, it returns for itself.
        reference: the right answer of a row, or several; None if the row has none.
        choices: texts among which the answer to a row is, in the order of their classes; None if it is any text.
        labels: those texts, if they are the same for all rows.
        group: rows of the same group are judged together; see the metrics.
    """

    read: Callable[[str, Row], Any]
    reference: Callable[[Row], Any]
    choices: Callable[[Row], tuple[str, ...]] | None = None
    labels: tuple[str, ...] | None = None
    group: Callable[[Row], Hashable] = lambda row: None


@dataclass(frozen=True)
class Task:
    """A text-to-text task. An entry of ``data/tasks/registry``.

    Args:
        name: unique.
        source: of the rows.
        format: of the examples.
        answers: meaning of predictions.
        metric_functions: of (references, predictions, groups).
        headline: metrics whose mean is the score of the task; all metrics if empty.
        baselines: by name, functions of (training rows, rows) that return predicted texts.
    """

    name: str
    source: RowSource
    format: Format
    answers: Answers
    metric_functions: tuple[Metric, ...]
    headline: tuple[str, ...] = ()
    baselines: Mapping[str, Baseline] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The texts of the classes, in their order; None for a task whose answers are not the same few texts."""
        return self.answers.labels

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that ``load`` takes."""
        return self.source.splits

    def load(self, split: str, folder: str | Path | None = None) -> Sequence[Row]:
        """Return the rows of a split, in the schema of the source.

        Args:
            split: one of ``splits``.
            folder: where ``python -m data.tasks`` wrote tasks; None: where it does by default. A file
                ``FOLDER/NAME/SPLIT.jsonl`` there is read instead of a source on a network.

        Raises:
            DataError: no such split, or it cannot be read; one line.
        """
        if split not in self.source.splits:
            raise DataError(f"task {self.name} has no split {split!r}: use {', '.join(self.source.splits)}")
        rows = self.source.load(self.name, split, folder)
        if not len(rows):
            raise DataError(f"task {self.name}: its split {split!r} has no rows")
        self._check_columns(rows[0])
        return rows

    def examples(self, rows: Sequence[Row], split: str = TRAIN) -> list[Pair]:
        """Return the (inputs, targets) of rows, as T5 makes them.

        Rows may give several pairs (ReCoRD: one per answer) or, in training, none (WSC: the wrong referents).

        Args:
            rows: in the schema of the source.
            split: ``train`` leaves out what is not trained on; any other split keeps all rows.

        Raises:
            DataError: a row lacks a column, or has another value there than the source has; one line.
        """
        return [(example.inputs, example.targets) for row in rows for example in self.examples_of(row, split)]

    def examples_of(self, row: Row, split: str = TRAIN) -> Iterator[Example]:
        """Yield the examples of a row; see ``examples``."""
        self._check_columns(row)
        if split == TRAIN and not self.format.is_trained_on(row):
            return
        for inputs, targets in self._of(self.format.pairs, row):
            yield Example(inputs, targets, row, self.name)

    def _check_columns(self, row: Row) -> None:
        for column in self.format.columns:
            if column not in row:
                raise DataError(f"task {self.name}: a row has no column {column!r}, but {', '.join(map(str, row))}")
            if row[column] is None:
                raise DataError(
                    f"task {self.name}: the column {column!r} of a row is null: give it a value or remove the row"
                )

    def _of(self, function: Callable[[Row], Any], row: Row) -> Any:
        """Return what a function makes of a row. Raises DataError if the row is not as the source has it."""
        try:
            return function(row)
        except DataError as error:
            raise DataError(f"task {self.name}: {error}") from None
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            columns = ", ".join(self.format.columns)
            raise DataError(
                f"task {self.name}: a row is not as {self.source.origin} has it: one of its columns {columns} is of "
                f"another form ({type(error).__name__}: {error})"
            ) from error

    def choices(self, row: Row) -> tuple[str, ...] | None:
        """Return the texts among which the answer to a row is; None if it is any text."""
        return None if self.answers.choices is None else self.answers.choices(row)

    def postprocess(self, text: str, row: Row) -> Any:
        """Return what a predicted text means: the number of a class (-1: none of them), a number or a text."""
        return self.answers.read(text, row)

    def references(self, rows: Sequence[Row]) -> list[Any]:
        """Return the right answer of each row, or several.

        Raises:
            DataError: rows without a right answer, such as those of a test split; one line.
        """
        references = [self._of(self.answers.reference, row) for row in rows]
        missing = sum(reference is None for reference in references)
        if missing:
            raise DataError(
                f"task {self.name}: {missing:,} of {counted(len(rows), 'row')} have no reference to compare with: "
                "evaluate a split with answers, such as validation"
            )
        return references

    def metrics(self, predictions: Sequence[Any], rows: Sequence[Row]) -> dict[str, float]:
        """Return the metrics of the task, in percent.

        Args:
            predictions: one per row; texts, or what ``postprocess`` made of them.
            rows: what was asked, in the same order.

        Raises:
            DataError: not one prediction per row, none at all, or rows without a right answer; one line.
        """
        if len(predictions) != len(rows) or not rows:
            raise DataError(
                f"task {self.name}: {counted(len(predictions), 'prediction')} for {counted(len(rows), 'row')}"
            )
        references = self.references(rows)
        meanings = [
            self.postprocess(prediction, row) if isinstance(prediction, str) else prediction
            for prediction, row in zip(predictions, rows, strict=True)
        ]
        groups = [self.answers.group(row) for row in rows]
        return {
            name: float(value)
            for metric in self.metric_functions
            for name, value in metric(references, meanings, groups).items()
        }

    def score(self, metrics: Mapping[str, float]) -> float:
        """Return the one figure of the task, as SuperGLUE averages it: the mean of its headline metrics."""
        names = self.headline or tuple(metrics)
        return sum(metrics[name] for name in names) / len(names)
