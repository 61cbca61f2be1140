"""How a checkpoint's folder appears, all at once, and how old ones go."""

import re
import shutil
from pathlib import Path

from common.files import sync_folder, write_atomically
from training.checkpoint.store.state import LATEST, step_of


def partial_folder(folder: Path) -> Path:
    """Where what ``publish`` makes ``folder`` is written."""
    return folder.with_name(f".{folder.name}.partial")


def begin(folder: Path) -> Path:
    """An empty ``partial_folder(folder)``: what a killed writer left there is removed."""
    partial = partial_folder(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def publish(folder: Path) -> None:
    """Give ``partial_folder(folder)``, now whole, its name; what an abandoned future of the run left there goes."""
    sync_folder(partial_folder(folder))
    replaced = _set_aside(folder)
    partial_folder(folder).rename(folder)
    sync_folder(folder.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def set_latest(folder: Path) -> None:
    """Let ``latest`` name a published checkpoint."""
    write_atomically(folder.parent / LATEST, folder.name)
    sync_folder(folder.parent)


def remove_abandoned(folder: Path) -> list[str]:
    """Remove what killed writers left among checkpoints; gives the names."""
    # Not those of convert.py, which may be at work.
    left = [path for path in folder.glob(".step_*") if re.fullmatch(r"\.step_\d+\.(partial|removed)", path.name)]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in left]


def prune(folder: Path, keep: int, keep_every: int | None) -> list[str]:
    """Remove older checkpoints than the newest ``keep`` up to ``folder``, which was just published; gives the names.

    Args:
        folder: of the newest checkpoint. Later ones are of an abandoned future, and stay until they are replaced.
        keep: how many stay, ``folder`` among them.
        keep_every: checkpoints whose step is a multiple of it stay too.
    """
    named = f"step_{step_of(folder):08d}"
    mine = [path for path in folder.parent.glob("step_*") if path.name == f"step_{step_of(path):08d}"]
    past = sorted((path for path in mine if path.name <= named), reverse=True)
    removed = []
    for path in past[keep:]:
        if keep_every is None or step_of(path) % keep_every:
            aside = _set_aside(path)  # half a checkpoint never has the name of a whole one
            if aside is not None:
                shutil.rmtree(aside, ignore_errors=True)
            removed.append(path.name)
    return removed


def _set_aside(folder: Path) -> Path | None:
    """Take away a folder's name, if it exists."""
    aside = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        return folder.rename(aside)
    except FileNotFoundError:
        return None
