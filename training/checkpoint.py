"""Checkpoints: DeepSpeed's files plus one JSON file with everything else that a resumed run needs.

``checkpoints/step_00000040/`` holds the engine's files and ``trainer_state.json``; ``checkpoints/latest`` names the
newest complete folder and is moved last.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.loader import merge_states
from training.config import ConfigError, RunConfig

STATE_FILE = "trainer_state.json"
LATEST = "latest"
FORMAT = 1


@dataclass(frozen=True)
class SavedState:
    """The part of a checkpoint that is not DeepSpeed's. Plain JSON."""

    step: int
    tokens: int
    config: dict[str, Any]
    world_size: int
    zero_stage: int
    data: dict[str, Any]  # merged over ranks
    format: int = FORMAT

    @property
    def tag(self) -> str:
        """The folder's name."""
        return f"step_{self.step:08d}"


def checkpoints_dir(config: RunConfig) -> Path:
    """Where a run's checkpoints are."""
    return config.run_dir / "checkpoints"


def find_checkpoint(config: RunConfig, world_size: int, zero_stage: int) -> SavedState:
    """The newest checkpoint of the run, checked against the present configuration.

    Raises:
        ConfigError: there is none, or it is of another model, optimizer or parallel layout.
    """
    folder = checkpoints_dir(config)
    latest = folder / LATEST
    if not latest.is_file():
        raise ConfigError(f"--resume: {folder} holds no checkpoint; start without --resume, or set training.name")
    state_file = folder / latest.read_text(encoding="utf-8").strip() / STATE_FILE
    try:
        saved = SavedState(**json.loads(state_file.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"--resume: {state_file} cannot be read: {error}") from None
    present = config.model_dump()
    for section in ("model", "optimizer"):
        _refuse_difference(section, saved.config[section], present[section], state_file)
    _refuse_difference("parallel", saved.config["parallel"], present["parallel"], state_file)
    for key, before, now in (
        ("the world size", saved.world_size, world_size),
        ("the ZeRO stage", saved.zero_stage, zero_stage),
        ("training.precision", saved.config["training"]["precision"], config.training.precision),
        (
            "training.global_batch_size",
            saved.config["training"]["global_batch_size"],
            config.training.global_batch_size,
        ),
        ("training.seed", saved.config["training"]["seed"], config.training.seed),
    ):
        if before != now:
            raise ConfigError(f"--resume: {key} is {now} but {state_file} was written with {before}: use {before}")
    return saved


def _refuse_difference(section: str, before: dict[str, Any], now: dict[str, Any], state_file: Path) -> None:
    for name in before.keys() | now.keys():
        old, new = before.get(name), now.get(name)
        if old != new:
            raise ConfigError(
                f"--resume: {section}.{name} is {new} but {state_file} was written with {old}: set {old}, or begin a "
                "new run with another training.name"
            )


def save_checkpoint(engine: Any, config: RunConfig, *, step: int, tokens: int, data_state: dict[str, Any]) -> Path:
    """Write a checkpoint; collective over all ranks.

    Args:
        engine: the DeepSpeed engine.
        config: of the run.
        step: updates made.
        tokens: real tokens processed, over all ranks.
        data_state: this rank's position in the data.

    Returns:
        The checkpoint's folder.
    """
    import deepspeed.comm as dist

    from training.optimizer_state import save_optimizer_state

    world_size = dist.get_world_size()
    data_states: list[Any] = [None] * world_size
    dist.all_gather_object(data_states, data_state)
    saved = SavedState(
        step=step,
        tokens=tokens,
        config=config.model_dump(),
        world_size=world_size,
        zero_stage=int(engine.zero_optimization_stage()),
        data=merge_states(data_states),
    )
    folder = checkpoints_dir(config)
    engine.save_checkpoint(str(folder), tag=saved.tag, save_latest=False)
    save_optimizer_state(engine.basic_optimizer, folder / saved.tag)
    dist.barrier()
    if dist.get_rank() == 0:
        _write_atomically(folder / saved.tag / STATE_FILE, json.dumps(asdict(saved)))
        _write_atomically(folder / LATEST, saved.tag)
    dist.barrier()
    return folder / saved.tag


def load_checkpoint(engine: Any, config: RunConfig, saved: SavedState) -> None:
    """Restore model, optimizer and schedule; collective over all ranks.

    DeepSpeed unpickles its files, so resume only from folders that you trust.
    """
    from training.optimizer_state import load_optimizer_state

    folder = checkpoints_dir(config)
    path, _ = engine.load_checkpoint(str(folder), tag=saved.tag)
    if path is None:
        raise RuntimeError(f"DeepSpeed could not load {folder / saved.tag}")
    load_optimizer_state(engine.basic_optimizer, folder / saved.tag)


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
