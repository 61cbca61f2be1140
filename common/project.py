"""Where the project's own files are, whichever folder a command is started from, and which version they are."""

import contextlib
import functools
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


@functools.cache
def code_version() -> dict[str, str | None]:
    """Return ``version`` (None outside a checkout or an installation) and ``git_commit`` of this program."""
    try:
        version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        version = None
    return {"version": version, "git_commit": _git_commit()}


def _git_commit() -> str | None:
    """The commit of this code, with ``-dirty`` if it was changed; None outside a git checkout and an image."""
    with contextlib.suppress(OSError):
        return (ROOT / ".commit").read_text(encoding="utf-8").strip() or None  # the Dockerfile writes it
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],  # noqa: S607
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
