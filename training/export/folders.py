"""Checks that a folder is a run or an export; imports neither torch nor transformers, which take seconds."""

import json
from pathlib import Path

from training.checkpoint.store.best import checkpoint_named
from training.checkpoint.store.state import candidates
from training.config.errors import ConfigError
from training.run.folder import RunFolder

MODEL_TYPE = "st_moe"  # of ``StMoeConfig``


def check_has_checkpoint(run_dir: Path) -> None:
    """Raise ConfigError if a folder holds no checkpoint, intact or not."""
    if not candidates(run_dir):
        raise ConfigError(f"{RunFolder(run_dir).checkpoints} holds no checkpoint: name a run folder, such as runs/tiny")


def check_source(folder: Path) -> None:
    """Raise ConfigError if a folder is neither a run with a checkpoint nor an exported model."""
    if RunFolder(folder).checkpoints.is_dir():
        check_has_checkpoint(folder)
        return
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        raise ConfigError(
            f"{folder} is neither a run (no {RunFolder(folder).checkpoints.name}/) nor an export (no config.json that "
            "can be read): name a folder such as runs/tiny, or the --output of convert.py export"
        ) from None
    if kind != MODEL_TYPE:
        raise ConfigError(f"{folder} holds a model of type {kind}, not {MODEL_TYPE}: name an export")


def check_step(folder: Path, step: str | None) -> None:
    """Raise ConfigError if ``checkpoint_named`` finds no checkpoint of this name in a run, or it is an export."""
    if step is None:
        return
    if not RunFolder(folder).checkpoints.is_dir():
        raise ConfigError(f"checkpoint {step}: {folder} is an export, which has one set of weights: leave it out")
    checkpoint_named(folder, step)
