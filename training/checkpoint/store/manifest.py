"""The manifest of a checkpoint: every file with its size and SHA-256, computed while it is written.

``manifest.json`` is written last, so a folder without one is incomplete. A folder that does not match its manifest
raises ``DamagedError`` and is never loaded.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from common.strict_json import to_json

MANIFEST_FILE = "manifest.json"
READ_BYTES = 2**22


class DamagedError(ValueError):
    """A checkpoint is incomplete or differs from what was written; the message names checkpoint and file."""


class FileRecord(NamedTuple):
    """Name, size and digest that a file must have."""

    name: str
    size: int  # bytes
    sha256: str


class RecordedFile:
    """Context manager: a new file whose digest is computed as it is written; on disk when the context is left.

    Raises:
        OSError: the file exists or cannot be written.
    """

    def __init__(self, path: Path):
        self.path, self.size = path, 0
        self.digest = hashlib.sha256()
        self.file = path.open("xb")

    def write(self, data: bytes | memoryview) -> int:
        """Append, and return the number of bytes."""
        self.digest.update(data)
        written = self.file.write(data)
        self.size += written
        return written

    @property
    def record(self) -> FileRecord:
        """The record of everything written so far."""
        return FileRecord(self.path.name, self.size, self.digest.hexdigest())

    def __enter__(self) -> "RecordedFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        with self.file:
            self.file.flush()
            os.fsync(self.file.fileno())


def record_text(path: Path, text: str) -> FileRecord:
    """Write a new file of text, and return its record."""
    with RecordedFile(path) as file:
        file.write(text.encode())
    return file.record


def write_manifest(folder: Path, records: Iterable[FileRecord]) -> None:
    """Write the last file of a checkpoint; all others must be on disk."""
    files = {name: {"size": size, "sha256": sha256} for name, size, sha256 in sorted(records)}
    record_text(folder / MANIFEST_FILE, to_json({"files": files}, indent=1))


def read_manifest(folder: Path) -> list[FileRecord]:
    """Return the records of the files that ``folder`` must hold, largest first. Raises DamagedError."""
    try:
        files = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
        records = [FileRecord(name, int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()]
    except FileNotFoundError:
        raise DamagedError(f"{folder.name}: {MANIFEST_FILE} is missing") from None
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{folder.name}: {MANIFEST_FILE} cannot be read: {error}") from None
    return sorted(records, key=lambda record: (-record.size, record.name))


def check_sizes(folder: Path, records: Iterable[FileRecord]) -> None:
    """Check that every file is there and has its size. Raises DamagedError."""
    for record in records:
        try:
            size = (folder / record.name).stat().st_size
        except OSError:
            raise DamagedError(f"{folder.name}: {record.name} is missing") from None
        if size != record.size:
            raise DamagedError(
                f"{folder.name}: {record.name} has {size} bytes, not the {record.size} that were written"
            )


def check_contents(folder: Path, records: Iterable[FileRecord]) -> None:
    """Check every byte; reads the files. Raises DamagedError."""
    for record in records:
        check_sizes(folder, [record])
        digest = hashlib.sha256()
        try:
            with (folder / record.name).open("rb") as file:
                while data := file.read(READ_BYTES):
                    digest.update(data)
        except OSError as error:
            raise DamagedError(f"{folder.name}: {record.name} cannot be read: {error}") from None
        if digest.hexdigest() != record.sha256:
            raise DamagedError(f"{folder.name}: {record.name} differs from what was written (SHA-256)")
