"""Texts under their keys: ``mrpc sentence1: … sentence2: …``, with the label's text as target. GLUE and SuperGLUE."""

import re
from collections.abc import Sequence

import numpy as np

from data.sources.retry import DataError
from data.tasks.sources.base import Row
from data.tasks.task import UNLABELED, Format, Pair


def keyed_text(prefix: str, columns: Sequence[str], labels: Sequence[str], *, marks: bool = True) -> Format:
    """Return the format ``PREFIX COLUMN: TEXT COLUMN: TEXT …``; nothing in a text is changed.

    Args:
        prefix: name of the task in the input.
        columns: of the texts, in this order.
        labels: texts of the classes that the column ``label`` numbers; -1 there gives ``<unk>``.
        marks: whether marks of HTML stay. MultiRC's line breaks become spaces, its bold marks nothing.
    """

    def pairs(row: Row) -> list[Pair]:
        inputs = " ".join([prefix, *(f"{column}: {row[column]}" for column in columns)])
        if not marks:
            inputs = re.sub("</?b>", "", inputs.replace("<br>", " "))
        return [(inputs, label_text(row, labels))]

    pattern = " ".join([prefix, *(f"{column}: …" for column in columns)])
    return Format((*columns, "label"), pattern, pairs)


def label_text(row: Row, labels: Sequence[str]) -> str:
    """Return the text of a row's class, ``<unk>`` for class -1. Raises DataError for a number that is no class."""
    number = class_number(row, labels)
    return UNLABELED if number is None else labels[number]


def class_number(row: Row, labels: Sequence[str]) -> int | None:
    """Return the number of a row's class, None for class -1. Raises DataError for a number that is no class."""
    label = row["label"]
    if label not in range(-1, len(labels)):
        numbered = ", ".join(f"{number} ({text})" for number, text in enumerate(labels))
        raise DataError(f"a row has the label {label!r}: give it one of {numbered}, or -1 for none")
    return None if label == -1 else int(label)


def similarity(prefix: str = "stsb") -> Format:
    """Return the format of STS-B: the score is rounded to the nearest of 0.0, 0.2, … 5.0, and written out."""

    def pairs(row: Row) -> list[Pair]:
        inputs = f"{prefix} sentence1: {row['sentence1']} sentence2: {row['sentence2']}"
        return [(inputs, similarity_text(row))]

    return Format(("sentence1", "sentence2", "label"), f"{prefix} sentence1: … sentence2: …", pairs)


def similarity_text(row: Row) -> str:
    """Return the rounded score of a row of STS-B, computed in float32 as T5 does."""
    return f"{np.round(np.float32(row['label']) * np.float32(5)) / np.float32(5):.1f}"
