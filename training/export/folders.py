"""Checks that a folder is a run or an export; imports neither torch nor transformers, which take seconds."""

import json
from pathlib import Path

from common.paths import no_folder
from training.checkpoint.store.best import checkpoint_named
from training.checkpoint.store.manifest import MANIFEST_FILE
from training.checkpoint.store.state import candidates
from training.config.errors import ConfigError
from training.run.folder import RunFolder

MODEL_TYPE = "st_moe"  # of ``StMoeConfig``
RUN, EXPORT = "a run folder, such as runs/tiny", "the --output of convert.py export"


def check_run(folder: Path) -> None:
    """Raise ConfigError if a folder is not that of a run with a checkpoint, intact or not."""
    if not candidates(folder):
        raise ConfigError(_what_is_wrong(folder, RUN))


def check_source(folder: Path) -> None:
    """Raise ConfigError if a folder is neither a run with a checkpoint nor an exported model."""
    if candidates(folder):
        return
    kind = _model_type(folder)
    if kind is None:
        raise ConfigError(_what_is_wrong(folder, f"{RUN}, or {EXPORT}"))
    if kind != MODEL_TYPE:
        raise ConfigError(f"{folder} holds a model of type {kind}, not {MODEL_TYPE}: name an export")


def check_step(folder: Path, step: str | None) -> None:
    """Raise ConfigError if ``checkpoint_named`` finds no checkpoint of this name in a run, or it is an export."""
    if step is None:
        return
    if not RunFolder(folder).checkpoints.is_dir():
        raise ConfigError(f"checkpoint {step}: {folder} is an export, which has one set of weights: leave it out")
    checkpoint_named(folder, step)


def _model_type(folder: Path) -> str | None:
    """Return the type of a Hugging Face model, ``none`` if it has none; None if no ``config.json`` can be read."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", "none"))
    except (OSError, ValueError, AttributeError):
        return None


def _what_is_wrong(folder: Path, wanted: str) -> str:
    """Say why a folder cannot be used, and what to name in its place."""
    if not folder.is_dir():
        return no_folder(folder, str(folder), f"name {wanted}")
    run, above = RunFolder(folder), folder.resolve().parent
    if (folder / MANIFEST_FILE).is_file():
        return f"{folder} is one checkpoint of a run: name the run, {above.parent}"
    if RunFolder(above).checkpoints == folder.resolve() and candidates(above):
        return f"{folder} is part of a run: name the run, {above}"
    if _model_type(folder) == MODEL_TYPE:
        return f"{folder} is an export, which holds weights alone: name the run that it was made from"
    if run.config_file.is_file() or run.checkpoints.is_dir():
        return f"{folder} holds no checkpoint: the run writes one every training.save_every steps, and at its end"
    inside = sorted(path for path in folder.iterdir() if RunFolder(path).has_checkpoint())
    if inside:
        return f"{folder} holds runs and is none itself: name one, such as {inside[0]}"
    return f"{folder} is no run, since it has no {run.checkpoints.name}/: name {wanted}"
