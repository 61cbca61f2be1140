"""Publishes a checkpoint's folder all at once, and removes old ones."""

import re
import shutil
from collections.abc import Collection
from pathlib import Path

from common.files import sync_folder
from training.checkpoint.store.state import step_of


def partial_folder(folder: Path) -> Path:
    """Return the staging folder, which ``publish`` renames to ``folder``."""
    return folder.with_name(f".{folder.name}.partial")


def begin(folder: Path) -> Path:
    """Create and return an empty staging folder; remains of a killed writer are removed."""
    partial = partial_folder(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def publish(folder: Path) -> None:
    """Rename the complete staging folder to ``folder``, replacing one of a future that was rolled back."""
    sync_folder(partial_folder(folder))
    replaced = _set_aside(folder)
    partial_folder(folder).rename(folder)
    sync_folder(folder.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def remove_abandoned(folder: Path) -> list[str]:
    """Remove what killed writers left among checkpoints, and return the names."""
    # Not the staging folders of convert.py, which may be running.
    left = [path for path in folder.glob(".step_*") if re.fullmatch(r"\.step_\d+\.(partial|removed)", path.name)]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in left]


def prune(folder: Path, keep: int, keep_every: int | None, best: Collection[int] = ()) -> list[str]:
    """Remove old checkpoints after ``folder`` was published, and return their names.

    Args:
        folder: of the newest checkpoint. Later ones, of a future that was rolled back, stay until they are replaced.
        keep: how many to keep, ``folder`` among them.
        keep_every: checkpoints whose step is a multiple of it are kept, too.
        best: steps whose checkpoints are kept, too.
    """
    named = f"step_{step_of(folder):08d}"
    mine = [path for path in folder.parent.glob("step_*") if path.name == f"step_{step_of(path):08d}"]
    past = sorted((path for path in mine if path.name <= named), reverse=True)
    removed = []
    for path in past[keep:]:
        if step_of(path) not in best and (keep_every is None or step_of(path) % keep_every):
            aside = _set_aside(path)  # a checkpoint in removal must not have the name of an intact one
            if aside is not None:
                shutil.rmtree(aside, ignore_errors=True)
            removed.append(path.name)
    return removed


def _set_aside(folder: Path) -> Path | None:
    """Rename a folder, if it exists, so that its name is free."""
    aside = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        return folder.rename(aside)
    except FileNotFoundError:
        return None
