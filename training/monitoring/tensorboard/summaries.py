"""The summaries of a row of ``metrics.jsonl``, and of an example of ``examples.jsonl``."""

import html
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING

from training.monitoring.columns import (
    CROSS_ENTROPY,
    DECISION,
    LOSS,
    REASON,
    ROUTING,
    SPLIT,
    STEP,
    TIME,
    TOKENS,
    TRAIN,
    VALIDATION,
)
from training.monitoring.tensorboard.pictures import heatmap, histogram

AGAINST_TOKENS = (CROSS_ENTROPY, LOSS)  # of training and validation, drawn against tokens, too
LOAD, PROBABILITIES = "load/", "probabilities/"
MOST_PIECES = 64  # of an example whose experts are shown
MOST_DECISIONS = 100


def of_row(row: Mapping[str, Any], *, pictures: bool) -> Iterator[Summary.Value]:
    """Yield the summaries of a row at its step: numbers and texts as ``<split>/<column>``, pictures of routing.

    Args:
        row: of any split, whole.
        pictures: whether to draw those of split ``routing``.
    """
    for name, value in row.items():
        if name in (STEP, SPLIT, TIME):
            continue
        if value is None or isinstance(value, int | float):  # null in the file: a number that is not finite
            yield Summary.Value(tag=f"{row[SPLIT]}/{name}", simple_value=math.nan if value is None else value)
        elif isinstance(value, str):
            yield text(f"{row[SPLIT]}/{name}", escaped(value))
    if row[SPLIT] == ROUTING and pictures:
        load = {name.removeprefix(LOAD): shares for name, shares in row.items() if name.startswith(LOAD)}
        if load:
            yield heatmap("routing/load", f"load of experts at step {row[STEP]}", load)
        for name, counts in row.items():
            if name.startswith(PROBABILITIES):
                yield histogram(f"routing/{name}", counts)


def against_tokens(row: Mapping[str, Any]) -> Iterator[Summary.Value]:
    """Yield what is also drawn with tokens in the place of steps: TensorBoard itself has steps and time only."""
    if row[SPLIT] in (TRAIN, VALIDATION) and TOKENS in row:
        for name in AGAINST_TOKENS:
            if isinstance(row.get(name), int | float):
                yield Summary.Value(tag=f"tokens/{row[SPLIT]}/{name}", simple_value=row[name])


def text(tag: str, markdown: str) -> Summary.Value:
    """Return a Markdown text."""
    return Summary.Value(
        tag=tag,
        tensor=TensorProto(
            dtype=DT_STRING,
            string_val=[markdown.encode()],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        ),
        metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text")),
    )


def of_example(row: Mapping[str, Any]) -> Summary.Value:
    """Return the text of an example: input, target, prediction, and the experts of each piece.

    Args:
        row: of ``examples.jsonl``, see ``training.monitoring.examples``.
    """
    parts = [
        f"**Input:** {escaped(row['input'])}",
        f"**Target:** {escaped(row['target'])}",
        f"**Prediction**, each piece from the target's before it ({row['correct']:.0%} correct): "
        f"{escaped(row['prediction'])}",
    ]
    for stack, pieces in row["pieces"].items():
        experts = {layer: of for layer, of in row["experts"].items() if layer.startswith(f"{stack}_")}
        if experts:
            parts.append(_table(stack, pieces, experts))
    return text(f"examples/{row['example']}", "\n\n".join(parts))


def of_decisions(rows: Sequence[Mapping[str, Any]]) -> Summary.Value:
    """Return a table of the guard's last decisions, the newest first."""
    lines = [
        f"| {row[STEP]} | {escaped(row[DECISION])} | {escaped(row[REASON])} |"
        for row in reversed(rows[-MOST_DECISIONS:])
    ]
    return text("guard/history", "\n".join(["| step | decision | reason |", "| --- | --- | --- |", *lines]))


def escaped(plain: str) -> str:
    """Return Markdown that shows ``plain`` as it is: sentinels look like HTML, and pieces begin with ``_`` or ``#``."""
    return re.sub(r"([\\`*_{}\[\]#|])", r"\\\1", html.escape(plain, quote=False)).replace("\n", " ")


def _table(stack: str, pieces: list[str], experts: Mapping[str, list[list[int]]]) -> str:
    shown = len(pieces) if len(pieces) <= MOST_PIECES else MOST_PIECES
    cut = "" if shown == len(pieces) else f", the first {shown} of {len(pieces)} pieces"
    head = [
        f"**Experts of the {stack}'s pieces**, first choice first; -: no expert had room{cut}",
        "",
        f"| piece | {' | '.join(escaped(layer) for layer in experts)} |",
        f"| --- |{' --- |' * len(experts)}",
    ]
    lines = [
        f"| {escaped(piece)} | " + " | ".join(", ".join(map(str, of[number])) or "-" for of in experts.values()) + " |"
        for number, piece in enumerate(pieces[:shown])
    ]
    return "\n".join([*head, *lines])
