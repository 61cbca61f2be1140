"""Rows of local JSON lines: ``FOLDER/TASK/SPLIT.jsonl``, one object per line."""

import json
from pathlib import Path

from data.sources.retry import DataError
from data.tasks.sources.base import DEFAULT_FOLDER, Row


def split_file(task: str, split: str, folder: str | Path | None) -> Path:
    """Return the file of a split, whether it exists or not."""
    return Path(DEFAULT_FOLDER if folder is None else folder) / task / f"{split}.jsonl"


def read_rows(file: Path) -> list[Row]:
    """Return the rows of a file of JSON lines.

    Raises:
        DataError: a line is no JSON object.
        OSError: the file cannot be read.
    """
    rows: list[Row] = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line.decode("utf-8"))
            except ValueError as error:  # UnicodeDecodeError is one, too
                raise DataError(f"{file}: line {number} is not valid JSON ({error}): mend or remove it") from None
            if not isinstance(row, dict):
                raise DataError(f"{file}: line {number} is no JSON object: mend or remove it")
            rows.append(row)
    return rows
