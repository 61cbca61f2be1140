"""The file of results: one JSON object per line and trained run or measurement, which grows over days and machines.

Lines are only ever appended, under a lock: several studies may share the file. A line that a crash has truncated, or
that a merge has left, is passed over with a notice.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from common.files import acquire_lock, sync_folder
from common.logs import get_logger
from common.paths import check_can_write_file
from common.strict_json import finite_or_null, to_json
from common.text import spans

RUN, TIME = "run", "time"  # kinds of rows
Row = dict[str, Any]

logger = get_logger("rows")


def identity(row: Row) -> tuple[Any, ...]:
    """Return what no two rows share: kind, key and, of a run, its seed; of a measurement, its device and date."""
    return row["kind"], row["key"], row["seed"] if row["kind"] == RUN else (row["device"], row["threads"], row["date"])


def check_rows(path: Path) -> None:
    """Check that rows can be read from a file and appended to it. Raises ValueError."""
    check_can_write_file(path, "--rows")


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file, none if there is no file; of rows with one identity the first."""
    if not path.is_file():
        return []
    return _parse(path.read_bytes(), path)


def append_row(path: Path, row: Row) -> bool:
    """Append a row durably, unless the file has one of its identity.

    Returns:
        Whether it was appended.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as file:
        content = file.read()
        if identity(row) in map(identity, _parse(content, path, quiet=True)):
            return False
        torn = bool(content) and not content.endswith(b"\n")
        line = ("\n" if torn else "") + to_json(finite_or_null(row)) + "\n"
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
    return True


def _locked(path: Path) -> IO[bytes]:
    """Open a file for reading and appending, at its start, alone; closing it releases the lock."""
    while True:
        file = path.open("a+b", buffering=0)
        acquire_lock(file, wait=True)
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            file.seek(0)
            return file
        file.close()  # the file was replaced, as git does, while this process waited


def _parse(content: bytes, path: Path, *, quiet: bool = False) -> list[Row]:
    rows: dict[tuple[Any, ...], Row] = {}
    wrong: list[int] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.setdefault(identity(row), row)
        except (ValueError, KeyError, TypeError):
            wrong.append(number)
    if wrong and not quiet:
        lines = (
            f"line {spans(wrong)} is no row and is" if len(wrong) == 1 else f"lines {spans(wrong)} are no rows and are"
        )
        logger.warning("%s: %s passed over", path, lines)
    return list(rows.values())


def of_kind(rows: Iterable[Row], kind: str, keys: Iterable[str]) -> list[Row]:
    """Return the rows of a kind and of some trials."""
    wanted = set(keys)
    return [row for row in rows if row["kind"] == kind and row["key"] in wanted]


def quietest(times: Iterable[Row]) -> list[Row]:
    """Return of each trial's measurements on a device, with a number of threads, the one at the lowest load."""
    best: dict[tuple[Any, ...], Row] = {}
    for row in sorted(times, key=lambda row: float(row["load_average"])):
        best.setdefault((row["key"], row["device"], row["threads"]), row)
    return list(best.values())
