"""Paths as users type them: ``~`` and variables, where a relative path was looked for, what can be written.

Every path of a config has the type ``UserPath``, every path of a command line the type ``path_argument``.
"""

import argparse
import difflib
import errno
import os
import re
import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")
# What a full, missing or forbidden place gives; other errors of the system are no mistake of the user.
PLACE_ERRORS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
     errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP}
)  # fmt: skip


def expand(path: str) -> str:
    """Return a path or URL with ``~``, ``$NAME`` and ``${NAME}`` replaced, as a shell would.

    Raises:
        ValueError: a variable is not set, or a user has no home folder.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise ValueError(f"the environment variable {name} is not set: export it, or write the path out")
        return os.environ[name]

    expanded = os.path.expanduser(VARIABLE.sub(value, path))
    if path.startswith("~") and expanded.startswith("~"):
        raise ValueError(
            f"{path.partition('/')[0]} has no home folder: write the path out, or ./{path} for such a name"
        )
    return expanded


UserPath = Annotated[str, AfterValidator(expand)]


def path_argument(text: str) -> Path:
    """Return a path of the command line; a ``type`` of ``common.arguments.Parser``."""
    return Path(path_text_argument(text))


def path_text_argument(text: str) -> str:
    """Return a path of the command line as text; a ``type`` of ``common.arguments.Parser``."""
    if not text:
        raise argparse.ArgumentTypeError("names nothing: write a path")
    try:
        return expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def searched(path: str | Path) -> str:
    """Return `` in FOLDER`` for a relative path, the folder that it was looked for in; nothing for other paths."""
    text = str(path)
    return "" if os.path.isabs(text) or "://" in text else f" in {Path.cwd()}"


def nearest(path: str | Path) -> Path | None:
    """Return the existing path that a missing one was probably meant to be, by the names in the folders above it."""
    path = Path(path)
    parent = path.parent if path.parent.is_dir() else nearest(path.parent)
    try:
        names = [entry.name for entry in parent.iterdir()] if parent is not None and parent.is_dir() else []
    except OSError:
        names = []
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    return parent / close[0] if parent is not None and close else None


def no_folder(path: Path, setting: str, otherwise: str) -> str:
    """Return one line about a path that is no folder, with the name that was probably meant.

    Args:
        path: is a file, or is not there.
        setting: key or option and value that name it, or the path itself.
        otherwise: what to do if no name is like it.
    """
    if path.exists():
        return f"{setting} is a file, no folder: {otherwise}"
    close = nearest(path)
    fix = f"did you mean {close}?" if close is not None and close.is_dir() else otherwise
    return f"{setting}: no such folder{searched(path)}: {fix}"


def check_can_read_file(file: Path, setting: str) -> None:
    """Check that a file is there and can be read.

    Args:
        file: of any content.
        setting: key or option that names it, for the message.

    Raises:
        ValueError: one line, with the name that was probably meant.
    """
    if not os.path.lexists(file):
        close = nearest(file)
        fix = f"did you mean {close}?" if close is not None and close.is_file() else "name one that is there"
        raise ValueError(f"{_of(setting, file)}: no such file{searched(file)}: {fix}")
    if not file.is_file():
        raise ValueError(f"{_of(setting, file)}: it is no file: name one")
    if not os.access(file, os.R_OK):
        raise ValueError(f"{_of(setting, file)}: no permission to read it")


def beside(path: str, *folders: Path) -> Path:
    """Return a file named relative to the current folder or, if it is not there, to the first folder that has it.

    A path that is in none of them is returned as it is.
    """
    found = (Path(path), *(folder / path for folder in folders))
    return next((file for file in found if file.exists()), Path(path))


def why(error: OSError) -> str:
    """Return the reason of a system's error and its file, as ``Permission denied: /data/x``."""
    name = error.filename if error.filename2 is None else error.filename2
    return (error.strerror or str(error)) + (f": {name}" if name is not None else "")


def check_can_write(folder: str | Path, setting: str, *, attempt: bool = True) -> None:
    """Check that a folder can be made or written to, and that its disk is not full. Leaves nothing there.

    Args:
        folder: need not exist.
        setting: key or option that names it, for the message.
        attempt: whether to make a hidden folder there and remove it, which finds out about places such as /proc, whose
            permissions promise more. Not for a folder that another process may look for files in.

    Raises:
        ValueError: one line that names setting, folder and reason.
    """
    reason = _why_not(Path(folder), attempt=attempt)
    if reason is not None:
        raise ValueError(f"{_of(setting, folder)}: {reason}: set another folder, or mend this one")


def check_can_write_file(file: Path, setting: str, *, in_folder: bool = False) -> None:
    """Check that a file can be made, or read and written where it is there. Leaves nothing there.

    Args:
        file: need not exist.
        setting: key or option that names it, for the message.
        in_folder: whether its folder must exist: none is made for a path that may be mistyped.

    Raises:
        ValueError: one line that names setting, file and reason.
    """
    if in_folder and not os.path.lexists(file.parent):
        folder = f"{_of(setting, file)}: there is no folder {file.parent}{searched(file)}"
        raise ValueError(f"{folder}: make it first, or name another file")
    reason = _why_not(file.parent, attempt=True)
    if file.is_dir():
        reason = "it is a folder"
    elif file.exists() and not file.is_file():
        reason = "it is no regular file"
    elif file.exists() and not os.access(file, os.R_OK | os.W_OK):
        reason = "no permission to read and write it"
    if reason is not None:
        raise ValueError(f"{_of(setting, file)}: {reason}: name another file")


def _of(setting: str, path: Path | str) -> str:
    """Return ``--json FILE`` or ``section.key = FOLDER``, as users write them."""
    return f"{setting}{' ' if setting.startswith('-') else ' = '}{path}"


def _why_not(folder: Path, *, attempt: bool) -> str | None:
    """Return why a folder cannot be made or written to; None if it can."""
    path = folder.absolute()
    there = next(p for p in (path, *path.parents) if os.path.lexists(p))
    reason = None
    if not there.is_dir():
        reason = f"{there} is no folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        reason = f"no permission to write to {there}"
    elif os.statvfs(there).f_bavail == 0 and os.statvfs(there).f_blocks > 0:
        reason = f"the disk of {there} is full"
    elif attempt:
        try:
            os.rmdir(tempfile.mkdtemp(prefix=".st-moe-", dir=there))
        except OSError as error:
            reason = f"nothing can be made in {there} ({error.strerror})"
    return reason
