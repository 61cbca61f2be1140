"""The file of finished measurements: one line each, so that a study that was interrupted continues."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from common.strict_json import finite_or_null, to_json
from studies.round_off.measure import Row
from training.checkpoint.store.manifest import MANIFEST_FILE
from training.checkpoint.store.state import candidates


class Measurements:
    """Finished measurements by what they are of.

    Args:
        path: of the file, JSON lines; need not exist. A line that a crash has truncated is measured again.
    """

    def __init__(self, path: Path):
        self.path = path
        self.found: dict[str, list[Row]] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for line in lines:
            try:
                entry = json.loads(line)
                self.found[_key(entry["of"])] = entry["rows"]
            except (ValueError, TypeError, KeyError):
                continue

    def rows(self, of: Mapping[str, Any], measure: Callable[[], Iterable[Row]]) -> list[Row]:
        """Return the rows of a measurement, from the file or else measured and appended to it.

        Args:
            of: what decides the result: JSON values.
            measure: measures it.
        """
        key = _key(of)
        if key not in self.found:
            rows = list(measure())
            content = self.path.read_bytes() if self.path.is_file() else b""
            with self.path.open("ab") as file:
                file.write(b"\n" if content and not content.endswith(b"\n") else b"")
                file.write((to_json(finite_or_null({"of": of, "rows": rows})) + "\n").encode())
            self.found[key] = rows
        return self.found[key]


def weights_identity(run_dir: Path) -> str:
    """Return a name for the newest weights of a run: a part of the SHA-256 of their manifest; empty without any."""
    found = candidates(run_dir)
    manifest = found[0] / MANIFEST_FILE if found else None
    return hashlib.sha256(manifest.read_bytes()).hexdigest()[:16] if manifest and manifest.is_file() else ""


def _key(of: Mapping[str, Any]) -> str:
    return to_json({name: of[name] for name in sorted(of)})
