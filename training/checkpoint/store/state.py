"""What a checkpoint is on disk, and whether a run may go on from it; needs neither torch nor DeepSpeed.

``checkpoints/step_00000040/`` holds ``trainer_state.json``, ``index.json``, one file of tensors per rank that wrote it
(see ``index``) and ``manifest.json``. It is written under another name and renamed when it is whole;
``checkpoints/latest`` names the newest and is moved last.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from training.checkpoint.store.manifest import DamagedError, check_contents, check_sizes, read_manifest
from training.config.errors import ConfigError
from training.config.run import RunConfig

STATE_FILE = "trainer_state.json"
LATEST = "latest"
SUMMARY_FILE = "summary.json"  # of a run that came to its end
FORMAT = 3
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
    guard: dict[str, Any]  # of the Guard
    evaluated: list[float] | None  # step and cross-entropy of the last evaluation
    metrics_bytes: int  # of metrics.jsonl: later rows are of a future that this checkpoint does not know
    code: dict[str, str | None]  # version and commit
    format: int = FORMAT

    def to_json(self) -> str:
        """The text of ``trainer_state.json``."""
        return json.dumps(asdict(self))


class Checkpoint(NamedTuple):
    """A whole checkpoint on disk."""

    folder: Path
    state: SavedState


def checkpoints_dir(run_dir: Path) -> Path:
    """Where a run's checkpoints are."""
    return run_dir / "checkpoints"


def is_done(config: RunConfig) -> bool:
    """Whether the run has made all its steps, and its last evaluation."""
    try:
        summary = json.loads((config.run_dir / SUMMARY_FILE).read_text(encoding="utf-8"))
        return bool(summary["steps"] >= config.training.steps)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def candidates(run_dir: Path) -> list[Path]:
    """Published checkpoints in the order in which to try them: what ``latest`` names, older ones, then newer ones.

    Newer ones than ``latest`` are of a future that someone, or the guard, went back from. When ``latest`` is missing
    or names nothing, the newest is first.
    """
    folder = checkpoints_dir(run_dir)
    folders = sorted((path for path in folder.glob("step_*") if path.is_dir()), key=_age, reverse=True)
    try:
        latest = folder / (folder / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return folders
    if latest not in folders:
        return folders
    place = folders.index(latest)
    return [*folders[place:], *reversed(folders[:place])]


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint; -1 of another folder."""
    match = re.match(r"step_(\d+)", folder.name)
    return int(match[1]) if match else -1


def _age(folder: Path) -> tuple[int, float]:
    """Sorts by step, copies for other layouts by the time they were made."""
    return step_of(folder), folder.stat().st_mtime


def read_checkpoint(
    run_dir: Path,
    *,
    contents: bool = True,
    sizes: bool = True,
    report: Callable[[str], None] = lambda _: None,
) -> Checkpoint:
    """The newest whole checkpoint of a run; damaged ones are refused by name and passed over.

    Args:
        run_dir: of the run.
        contents: check every byte. Otherwise the caller must, before it uses a tensor.
        sizes: check that all files are there and as long as they were.
        report: told why a checkpoint is refused, one line each.

    Raises:
        ConfigError: there is none that is whole.
    """
    folder = checkpoints_dir(run_dir)
    found = candidates(run_dir)
    if not found:
        raise ConfigError(f"{folder} holds no checkpoint")
    reasons = []
    for path in found:
        try:
            records = read_manifest(path)
            if contents:
                check_contents(path, records)
            elif sizes:
                check_sizes(path, records)
            return read_folder(path)
        except DamagedError as error:
            reasons.append(str(error))
            report(f"checkpoint refused: {error}")
    raise ConfigError(f"{folder} holds no checkpoint that is whole ({'; '.join(reasons)}): restore one from a copy")


def read_folder(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``. Raises DamagedError, or ConfigError if it is of another version of this program."""
    state_file = folder / STATE_FILE
    try:
        values = json.loads(state_file.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise ConfigError(
                f"{state_file} is of format {values.get('format')}, this version reads {FORMAT}: begin a new run"
            )
        return Checkpoint(folder, SavedState(**values))
    except ConfigError:
        raise
    except (OSError, AttributeError, TypeError, ValueError) as error:
        raise DamagedError(f"{folder.name}: {STATE_FILE} cannot be read: {error}") from None


def find_checkpoint(
    config: RunConfig,
    world_size: int,
    zero_stage: int,
    *,
    sizes: bool = True,
    report: Callable[[str], None] = lambda _: None,
) -> Checkpoint:
    """The newest checkpoint of the run, of any parallel layout and precision, whose contents are still to be checked.

    Args:
        config: of the run.
        world_size: ranks that go on.
        zero_stage: at which they do.
        sizes: see ``read_checkpoint``.
        report: see ``read_checkpoint``.

    Raises:
        ConfigError: there is none, it is of another model, optimizer, batch or seed, or of another layout with an
            optimizer that is ``BY_RANK``.
    """
    try:
        checkpoint = read_checkpoint(config.run_dir, contents=False, sizes=sizes, report=report)
    except ConfigError as error:
        raise ConfigError(f"--resume: {error}; start without --resume, or set training.name") from None
    check_fits(checkpoint, config, world_size, zero_stage)
    return checkpoint


def check_fits(checkpoint: Checkpoint, config: RunConfig, world_size: int, zero_stage: int) -> None:
    """Raise ConfigError if the run cannot go on from ``checkpoint``."""
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
