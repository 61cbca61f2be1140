"""Texts under their keys: ``mrpc sentence1: … sentence2: …``, with the label's text as target. GLUE and SuperGLUE."""

import re
from collections.abc import Sequence

import numpy as np

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
    """Return the text of a row's class, ``<unk>`` for class -1."""
    return UNLABELED if row["label"] == -1 else labels[row["label"]]


def similarity(prefix: str = "stsb") -> Format:
    """Return the format of STS-B: the score is rounded to the nearest of 0.0, 0.2, … 5.0, and written out."""

    def pairs(row: Row) -> list[Pair]:
        inputs = f"{prefix} sentence1: {row['sentence1']} sentence2: {row['sentence2']}"
        return [(inputs, similarity_text(row))]

    return Format(("sentence1", "sentence2", "label"), f"{prefix} sentence1: … sentence2: …", pairs)


def similarity_text(row: Row) -> str:
    """Return the rounded score of a row of STS-B, computed in float32 as T5 does."""
    return f"{np.round(np.float32(row['label']) * np.float32(5)) / np.float32(5):.1f}"
