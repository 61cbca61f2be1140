"""Rows that ``python -m data.tasks`` has written as local JSON lines."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.sources.retry import DataError
from data.tasks.sources.base import DEFAULT_FOLDER, Row
from data.tasks.sources.local import read_rows, split_file

DESCRIPTION_FILE = "task.json"


def description(task: str, folder: str | Path | None = None) -> dict[str, Any] | None:
    """Return what ``python -m data.tasks`` has written of a task: its source, license, rows and baselines.

    Args:
        task: name.
        folder: see ``Task.load``.

    Returns:
        Content of ``FOLDER/TASK/task.json``, None if the task was not prepared there; ``baselines`` are metrics by
        baseline, on the split ``baselines_split``.

    Raises:
        DataError: the file is not that of the command.
    """
    file = Path(DEFAULT_FOLDER if folder is None else folder) / task / DESCRIPTION_FILE
    if not file.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON ({error}): remove the folder and prepare the task again") from None
    if not isinstance(content, dict) or not {"archives", "rows", "baselines"} <= content.keys():
        raise DataError(f"{file} was not made by python -m data.tasks: remove the folder and prepare the task again")
    return content


@dataclass(frozen=True)
class PreparedRows:
    """Splits that no network holds in this form.

    Args:
        origin: where the rows come from, for people.
        license: of the rows.
        splits: their names.
    """

    origin: str
    license: str
    splits: tuple[str, ...] = ("train", "validation", "test")

    def load(self, task: str, split: str, folder: str | Path | None) -> Sequence[Row]:
        """See ``RowSource``.

        Raises:
            DataError: the task was not prepared there.
        """
        file = split_file(task, split, folder)
        if not file.is_file():
            raise DataError(
                f"task {task}: {file} is missing: run python -m data.tasks {task} --out {file.parent.parent}"
            )
        return read_rows(file)
