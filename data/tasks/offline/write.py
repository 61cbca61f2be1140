"""Writes a prepared task: ``OUT/TASK`` with a file of JSON lines per split and ``task.json``."""

import os
import shutil
from pathlib import Path
from typing import Any

from common.files import sync_folder, wait_for_lock, write_atomically
from common.strict_json import to_json
from data.preparation.exclusion import text_hash
from data.sources.retry import DataError
from data.tasks.offline.preparations import PREPARATIONS, Preparation
from data.tasks.offline.splits import Splits
from data.tasks.registry.all import get
from data.tasks.sources.prepared import DESCRIPTION_FILE, description
from data.tasks.task import TRAIN, Task

EXCLUDE_FILE, ARCHIVES = "exclude.txt", ".archives"


def write_task(name: str, out: Path) -> tuple[dict[str, Any], bool]:
    """Prepare a task unless it is there.

    The folder of the task appears when it is complete. ``OUT/exclude.txt`` then lists the hashes of the texts of all
    prepared tasks' evaluation rows, for ``python -m data.prepare --exclude``.

    Args:
        name: of the task, one of ``PREPARATIONS``.
        out: folder of tasks; archives are kept in a hidden folder of it.

    Returns:
        (content of ``task.json``, whether the task was there).

    Raises:
        DataError, ValueError, OSError: one line.
    """
    task, folder = get(name), out / name
    preparation = PREPARATIONS[name]
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        wait_for_lock(lock, f"preparing tasks in {out}")
        found = existing(folder, preparation)
        if found is not None:
            return found, True
        work = out / f".{name}.partial"
        shutil.rmtree(work, ignore_errors=True)
        splits = preparation.splits(out / ARCHIVES)
        work.mkdir()
        made = _describe(task, preparation, splits)
        for split, rows in splits.items():
            lines = "".join(to_json(dict(row), ensure_ascii=False) + "\n" for row in rows)
            write_atomically(work / f"{split}.jsonl", lines)
        held_out = (
            str(row[preparation.text_column]) for split, rows in splits.items() if split != TRAIN for row in rows
        )
        write_atomically(work / EXCLUDE_FILE, "".join(f"{text_hash(text)}\n" for text in held_out))
        write_atomically(work / DESCRIPTION_FILE, to_json(made, indent=2) + "\n")
        os.rename(work, folder)
        sync_folder(out)
        _gather_excluded(out)
    return made, False


def existing(folder: Path, preparation: Preparation) -> dict[str, Any] | None:
    """Return the description of a prepared task, or None if there is none.

    Raises:
        DataError: the folder holds something else, or the same task out of other archives.
    """
    if not folder.exists():
        return None
    content = description(folder.name, folder.parent)
    if content is None:
        raise DataError(
            f"{folder} was not made by this command (no {DESCRIPTION_FILE}): remove it, or choose another --out"
        )
    if content["archives"] != _archives(preparation):
        raise DataError(
            f"{folder} was made of other archives ({content['archives']}): remove it, or choose another --out"
        )
    return content


def _archives(preparation: Preparation) -> list[dict[str, str]]:
    return [{"package": archive.origin, "sha256": archive.sha256} for archive in preparation.archives]


def _describe(task: Task, preparation: Preparation, splits: Splits) -> dict[str, Any]:
    measured = "test" if "test" in splits else "validation"
    scores = {
        name: task.metrics(baseline(splits[TRAIN], splits[measured]), splits[measured])
        for name, baseline in task.baselines.items()
    }
    return {
        "task": task.name,
        "origin": preparation.origin,
        "license": preparation.license,
        "archives": _archives(preparation),
        "rows": {split: len(rows) for split, rows in splits.items()},
        "format": task.format.pattern,
        "labels": None if task.labels is None else list(task.labels),
        "baselines_split": measured,
        "baselines": scores,
    }


def _gather_excluded(out: Path) -> None:
    files = sorted(file for file in out.glob(f"*/{EXCLUDE_FILE}") if not file.parent.name.startswith("."))
    hashes = sorted({line for file in files for line in file.read_text(encoding="utf-8").splitlines()})
    comment = f"# texts of the evaluation rows of {', '.join(file.parent.name for file in files)}\n"
    write_atomically(out / EXCLUDE_FILE, comment + "".join(f"{line}\n" for line in hashes))
