"""The files of finished runs and measurements: a JSON line each, so that a study continues, also on another machine."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.paths import check_can_write_file
from common.strict_json import finite_or_null, to_json
from training.checkpoint.store.manifest import MANIFEST_FILE
from training.checkpoint.store.state import candidates
from training.config.errors import ConfigError

Row = dict[str, Any]


class Measurements:
    """Finished measurements by what they are of.

    Args:
        path: of the file, JSON lines; need not exist. A line that a crash has truncated is measured again.
    """

    def __init__(self, path: Path):
        self.path = path
        self.found: dict[str, list[Row]] = {}
        for entry in _entries(path):
            if {"of", "rows"} <= entry.keys():
                self.found[_key(entry["of"])] = entry["rows"]

    def rows(self, of: Mapping[str, Any], measure: Callable[[], Iterable[Row]]) -> list[Row]:
        """Return the rows of a measurement, from the file or else measured and appended to it.

        Args:
            of: what decides the result: JSON values.
            measure: measures it.
        """
        key = _key(of)
        if key not in self.found:
            rows = list(measure())
            _append(self.path, {"of": of, "rows": rows})
            self.found[key] = rows
        return self.found[key]


class FinishedRuns:
    """Rows of finished runs, of ``recovery.to_rows``, whose folders are no longer needed.

    Args:
        path: of the file, JSON lines; need not exist.
        settings: what all runs of the study have in common: configuration file and ``key=value`` arguments.

    Raises:
        ValueError: the file cannot be read or appended to, or holds runs of other settings.
    """

    def __init__(self, path: Path, settings: Sequence[str]):
        self.path, self.settings = path, list(settings)
        self.found: dict[tuple[str, int], Row] = {}
        check_can_write_file(path, "--rows")
        try:
            entries = list(_entries(path))
        except (OSError, ValueError) as error:
            raise ConfigError(f"--rows {path} cannot be read: {error}") from None
        for entry in entries:
            if entry.get("settings") != self.settings:
                other = " ".join(map(str, entry.get("settings") or ["unknown"]))
                raise ConfigError(
                    f"--rows {path} holds runs of other settings ({other}, here {' '.join(self.settings)}): name "
                    "another file, or repeat the command with those settings"
                )
            self.found[entry["row"]["variant"], entry["row"]["seed"]] = entry["row"]

    def add(self, rows: Iterable[Row]) -> None:
        """Append the rows of finished runs that the file lacks."""
        for row in rows:
            key = row["variant"], row["seed"]
            if row["status"] != "unfinished" and key not in self.found:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                _append(self.path, {"settings": self.settings, "row": row})
                self.found[key] = row


def weights_identity(run_dir: Path) -> str:
    """Return a name for the newest weights of a run: a part of the SHA-256 of their manifest; empty without any."""
    found = candidates(run_dir)
    manifest = found[0] / MANIFEST_FILE if found else None
    return hashlib.sha256(manifest.read_bytes()).hexdigest()[:16] if manifest and manifest.is_file() else ""


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file that need not exist; one that a crash has truncated is skipped."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    content = path.read_bytes() if path.is_file() else b""
    with path.open("ab") as file:
        file.write(b"\n" if content and not content.endswith(b"\n") else b"")
        file.write((to_json(finite_or_null(entry)) + "\n").encode())


def _key(of: Mapping[str, Any]) -> str:
    return to_json({name: of[name] for name in sorted(of)})
