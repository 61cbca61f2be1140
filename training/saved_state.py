"""What a checkpoint is on disk, and whether a run may go on from it; needs neither torch nor DeepSpeed.

``checkpoints/step_00000040/`` holds ``trainer_state.json``, ``index.json`` and one file of tensors per rank that wrote
it (``training/shards.py``). It is written under another name and renamed when it is whole; ``checkpoints/latest`` names
the newest and is moved last.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from training.config import ConfigError, RunConfig

STATE_FILE = "trainer_state.json"
LATEST = "latest"
FORMAT = 2
BY_RANK = ("adamw_8bit",)  # optimizers whose state loads at the layout it was written at alone: see rank_state.py


@dataclass(frozen=True)
class SavedState:
    """Everything but tensors. Plain JSON."""

    step: int
    tokens: int
    config: dict[str, Any]
    world_size: int
    zero_stage: int
    data: dict[str, Any]  # merged over ranks
    engine: dict[str, Any]  # DeepSpeed's counters and the schedule
    format: int = FORMAT


class Checkpoint(NamedTuple):
    """A whole checkpoint on disk."""

    folder: Path
    state: SavedState


def checkpoints_dir(run_dir: Path) -> Path:
    """Where a run's checkpoints are."""
    return run_dir / "checkpoints"


def read_checkpoint(run_dir: Path) -> Checkpoint:
    """The newest checkpoint of a run. Raises ConfigError."""
    folder = checkpoints_dir(run_dir)
    latest = folder / LATEST
    if not latest.is_file():
        raise ConfigError(f"{folder} holds no checkpoint")
    return read_folder(folder / latest.read_text(encoding="utf-8").strip())


def read_folder(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``. Raises ConfigError."""
    state_file = folder / STATE_FILE
    try:
        values = json.loads(state_file.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise ConfigError(
                f"{state_file} is of format {values.get('format')}, this version reads {FORMAT}: begin a new run"
            )
        return Checkpoint(folder, SavedState(**values))
    except (OSError, AttributeError, TypeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{state_file} cannot be read: {error}") from None


def find_checkpoint(config: RunConfig, world_size: int, zero_stage: int) -> Checkpoint:
    """The newest checkpoint of the run, of any parallel layout and precision.

    Raises:
        ConfigError: there is none, it is of another model, optimizer, batch or seed, or of another layout with an
            optimizer that is ``BY_RANK``.
    """
    try:
        checkpoint = read_checkpoint(config.run_dir)
    except ConfigError as error:
        raise ConfigError(f"--resume: {error}; start without --resume, or set training.name") from None
    present, saved = config.model_dump(), checkpoint.state.config
    for section, keys in (
        ("model", present["model"].keys() | saved["model"].keys()),
        ("optimizer", present["optimizer"].keys() | saved["optimizer"].keys()),
        ("training", ("global_batch_size", "seed")),
    ):
        for key in keys:
            before, now = saved[section].get(key), present[section].get(key)
            if before != now:
                raise ConfigError(
                    f"--resume: {section}.{key} is {now} but {checkpoint.folder} was written with {before}: set "
                    f"{before}, or begin a new run with another training.name"
                )
    refuse_by_rank(checkpoint.state, config.parallel.expert_parallel_size, world_size, zero_stage)
    return checkpoint


def refuse_by_rank(state: SavedState, expert_parallel_size: int, world_size: int, zero_stage: int) -> None:
    """Raise ConfigError if this layout is another one, and the optimizer's state cannot change it."""
    optimizer = state.config["optimizer"]["name"]
    before = (state.config["parallel"]["expert_parallel_size"], state.world_size, state.zero_stage)
    if optimizer in BY_RANK and before != (expert_parallel_size, world_size, zero_stage):
        raise ConfigError(
            f"optimizer.name = {optimizer} keeps its state in blocks of what a rank holds: go on with "
            f"parallel.expert_parallel_size = {before[0]}, {before[1]} ranks and ZeRO {before[2]}"
        )


def describe_resume(checkpoint: Checkpoint, config: RunConfig, world_size: int, zero_stage: int) -> str:
    """One line for people: from which checkpoint the run goes on and, if it is another, at which layout."""
    state = checkpoint.state
    written = _layout(state.config, state.world_size, state.zero_stage)
    now = _layout(config.model_dump(), world_size, zero_stage)
    if written == now:
        return f"going on from {checkpoint.folder.name}"
    return f"checkpoint {checkpoint.folder.name} was written at {written}: going on at {now}"


def _layout(config: dict[str, Any], world_size: int, zero_stage: int) -> str:
    return (
        f"EP {config['parallel']['expert_parallel_size']}, world {world_size}, ZeRO {zero_stage}, "
        f"{config['training']['precision']}"
    )


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
    _sync(partial_folder(folder))
    shutil.rmtree(folder, ignore_errors=True)
    partial_folder(folder).rename(folder)
    _sync(folder.parent)


def set_latest(folder: Path) -> None:
    """Let ``latest`` name a published checkpoint."""
    write_text(folder.parent / LATEST, folder.name)


def write_state(folder: Path, state: SavedState) -> None:
    """Write ``trainer_state.json``."""
    write_text(folder / STATE_FILE, json.dumps(asdict(state)))


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
