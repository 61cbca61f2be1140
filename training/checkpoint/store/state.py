"""A checkpoint's state besides its tensors, and which checkpoints a run has; imports neither torch nor DeepSpeed.

``checkpoints/step_00000040/`` holds ``trainer_state.json``, ``index.json``, one file of tensors per rank that wrote it
and ``manifest.json``. It is written under another name and renamed when it is complete; ``checkpoints/latest`` names
the newest and is updated last.
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from common.strict_json import to_json
from training.checkpoint.store.layout import ParallelLayout
from training.checkpoint.store.manifest import DamagedError
from training.config.errors import ConfigError
from training.run.folder import RunFolder

STATE_FILE = "trainer_state.json"
FORMAT = 4
READABLE = (3, FORMAT)  # 3: index files list every range; see Index.read


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
    metrics_bytes: int  # of metrics.jsonl: rows behind it belong to later steps, which a resumed run writes again
    code: dict[str, str | None]  # version and commit
    seconds: float = 0.0  # of training until then, over all sessions; older checkpoints lack it
    routing: dict[str, list[float]] = field(default_factory=dict)  # sums for the next row of ``routing``; lacking, too
    evaluated_domains: dict[str, float] = field(
        default_factory=dict
    )  # cross-entropies of that evaluation; lacking, too
    evaluated_scores: dict[str, float | None] = field(default_factory=dict)  # of tasks, in it; None: no number; lacking
    format: int = FORMAT

    @property
    def layout(self) -> ParallelLayout:
        """The layout that the checkpoint was written at."""
        return ParallelLayout.of(self.config, self.world_size, self.zero_stage)

    @property
    def scores(self) -> dict[str, float]:
        """``evaluated_scores`` with NaN for what is no number."""
        return {name: math.nan if score is None else score for name, score in self.evaluated_scores.items()}

    @property
    def optimizer(self) -> str:
        """``optimizer.name`` of the run."""
        return str(self.config["optimizer"]["name"])

    def to_json(self) -> str:
        """Return the text of ``trainer_state.json``."""
        return to_json(vars(self))  # asdict would copy the position in the data, megabytes with many streams


class Checkpoint(NamedTuple):
    """A published checkpoint."""

    folder: Path
    state: SavedState


def candidates(run_dir: Path) -> list[Path]:
    """Return the published checkpoints in the order in which to try them: what ``latest`` names, older, then newer.

    Checkpoints newer than ``latest`` belong to a future that someone, or the guard, has rolled back. When ``latest`` is
    missing or names nothing, the newest is first.
    """
    run = RunFolder(run_dir)
    folders = sorted((path for path in run.checkpoints.glob("step_*") if path.is_dir()), key=_age, reverse=True)
    name = run.latest()
    latest = run.checkpoints / name if name else None
    if latest not in folders:
        return folders
    index = folders.index(latest)
    return [*folders[index:], *reversed(folders[:index])]


def step_of(folder: Path) -> int:
    """Return the step in the name of a checkpoint; -1 for another folder."""
    match = re.match(r"step_(\d+)", folder.name)
    return int(match[1]) if match else -1


def _age(folder: Path) -> tuple[int, float]:
    """Sort key: the step; copies for other layouts by the time they were made."""
    return step_of(folder), folder.stat().st_mtime


def read_folder(folder: Path) -> Checkpoint:
    """Return the checkpoint in ``folder``.

    Raises:
        DamagedError: its state cannot be read.
        ConfigError: it was written by another version of this program.
    """
    state_file = folder / STATE_FILE
    try:
        values = json.loads(state_file.read_text(encoding="utf-8"))
        if values.get("format") not in READABLE:
            raise ConfigError(
                f"{state_file} is of format {values.get('format')}, this version reads {READABLE[0]} to {FORMAT}: "
                "begin a new run"
            )
        return Checkpoint(folder, SavedState(**values | {"format": FORMAT}))
    except ConfigError:
        raise
    except (OSError, AttributeError, TypeError, ValueError) as error:
        raise DamagedError(f"{folder.name}: {STATE_FILE} cannot be read: {error}") from None
