"""The rows of a run that stand: without those of steps that a roll-back has undone.

``metrics.jsonl`` is a record of what happened, so the rows of undone steps stay in it, before the guard's row of the
roll-back. Whoever draws curves wants each step once.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.monitoring.columns import GUARD, ROLLED_BACK_TO, SPLIT, STEP, TIME, TRAIN, split_of


def row_of(line: bytes) -> dict[str, Any] | None:
    """Return the row of a whole line; None for a line that a crash has cut off."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and line.endswith(b"\n") else None


def standing_rows(path: Path, waiting: bytes = b"") -> Iterator[dict[str, Any]]:
    """Yield the rows of ``metrics.jsonl`` in their order, but those of undone steps. The guard's rows all stand.

    Reads the file twice, a line at a time: it may be larger than memory.

    Args:
        path: may be missing.
        waiting: lines that follow those of the file, see ``GrowingFile``.
    """
    rollbacks = [
        (number, int(row[ROLLED_BACK_TO]))
        for number, line in enumerate(_lines(path, waiting))
        if b'"%s"' % ROLLED_BACK_TO.encode() in line and (row := row_of(line)) is not None and ROLLED_BACK_TO in row
    ]
    for number, line in enumerate(_lines(path, waiting)):
        row = row_of(line)
        if row is None or not isinstance(row.get(STEP), int | float):
            continue
        if split_of(row) == GUARD or row[STEP] <= _limit(rollbacks, number):
            yield {SPLIT: TRAIN, TIME: 0.0, **row}  # older runs left them out


def _limit(rollbacks: list[tuple[int, int]], number: int) -> float:
    """The last step that stands of a row: roll-backs after it have undone what is later."""
    return min((step for line, step in rollbacks if line > number), default=math.inf)


def _lines(path: Path, waiting: bytes) -> Iterator[bytes]:
    if path.exists():
        with path.open("rb") as file:
            yield from file
    yield from waiting.splitlines(keepends=True)
