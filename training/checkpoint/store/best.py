"""Which checkpoints of a run are best, by the columns of validation that ``training.keep_best`` names. Without torch.

``best.json`` in the run folder names them. It is derived: what a checkpoint is worth is in its own state, so that a run
which resumes makes the file anew from the checkpoints that are there. It is written after a checkpoint is published and
before others are removed, and so never names one that is not there.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from common.files import sync_folder, write_atomically
from common.strict_json import to_json
from training.checkpoint.store.manifest import DamagedError
from training.checkpoint.store.state import candidates, read_folder, step_of
from training.config.errors import ConfigError
from training.monitoring.columns import CROSS_ENTROPY, GUARD, ROLLBACKS, ROLLED_BACK_TO, SCORE, split_of
from training.monitoring.standing import standing_rows
from training.run.folder import RunFolder

BEST = "best"
LOWEST = (CROSS_ENTROPY,)  # columns of which a lower value is better


class Entry(NamedTuple):
    """The best checkpoint by a column.

    Attributes:
        step: of the checkpoint.
        value: of the column at that step.
    """

    step: int
    value: float


@dataclass(frozen=True)
class Best:
    """The best checkpoint by each column, such as ``score`` and ``score/sst2``. Of equal ones the earliest."""

    entries: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def steps(self) -> set[int]:
        """The steps of all best checkpoints."""
        return {entry.step for entry in self.entries.values()}

    def improved(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Return the columns by which a checkpoint of ``step`` with these values would be the best."""
        return [name for name, value in values.items() if self._is_better(name, Entry(step, value))]

    def adding(self, step: int, values: Mapping[str, float]) -> "Best":
        """Return the best ones when a checkpoint of ``step`` is there, too."""
        return Best(dict(self.entries) | {name: Entry(step, values[name]) for name in self.improved(step, values)})

    def _is_better(self, name: str, new: Entry) -> bool:
        if not math.isfinite(new.value):
            return False
        old = self.entries.get(name)
        if old is None or old.value == new.value:
            return old is None or new.step < old.step
        return (new.value < old.value) == (name in LOWEST)


def values_of(keep_best: str | None, cross_entropy: float, scores: Mapping[str, float]) -> dict[str, float]:
    """Return the columns by which ``training.keep_best`` compares checkpoints.

    Args:
        keep_best: the setting.
        cross_entropy: of an evaluation.
        scores: of its tasks; empty: none were asked.
    """
    if keep_best == "cross_entropy":
        return {str(CROSS_ENTROPY): cross_entropy}
    if keep_best is None or not scores:
        return {}
    found = {str(SCORE): sum(scores.values()) / len(scores)}
    return found if keep_best == "score" else found | {f"{SCORE}/{name}": value for name, value in scores.items()}


def standing_best(run_dir: Path, keep_best: str | None, step: int) -> Best:
    """Return the best of the published checkpoints until ``step``.

    Their values are those of their states and, for one that was evaluated only after a stop, those of the file.

    Args:
        run_dir: of the run.
        keep_best: the setting.
        step: at which the run continues; later checkpoints belong to a future that was rolled back.
    """
    best = Best()
    if keep_best is None:
        return best
    noted = read_best(run_dir).entries
    rollbacks = [
        (int(row[ROLLBACKS]), int(row[ROLLED_BACK_TO]))
        for row in standing_rows(RunFolder(run_dir).metrics_file)
        if split_of(row) == GUARD and ROLLED_BACK_TO in row
    ]
    for path in sorted((path for path in candidates(run_dir) if step_of(path) <= step), key=step_of):
        try:
            state = read_folder(path).state
        except (DamagedError, ConfigError):
            continue
        made_after = int(state.guard.get("rollbacks", 0))
        if any(number > made_after and back < state.step for number, back in rollbacks):
            continue  # rolled back, and not replaced yet
        if state.evaluated is not None and int(state.evaluated[0]) == state.step:
            values = values_of(keep_best, state.evaluated[1], state.scores)
        else:
            of_step = {name: entry.value for name, entry in noted.items() if entry.step == state.step}
            values = {name: value for name, value in of_step.items() if _is_compared(keep_best, name)}
        best = best.adding(state.step, values)
    return best


def _is_compared(keep_best: str, name: str) -> bool:
    if keep_best == "tasks":
        return name == SCORE or name.startswith(f"{SCORE}/")
    return name == keep_best


def read_best(run_dir: Path) -> Best:
    """Return what ``best.json`` says; nothing if it is not there or cannot be read."""
    try:
        entries = json.loads(RunFolder(run_dir).best_file.read_text(encoding="utf-8"))
        return Best({name: Entry(int(entry["step"]), float(entry["value"])) for name, entry in entries.items()})
    except (OSError, AttributeError, KeyError, TypeError, ValueError):
        return Best()


def write_best(run_dir: Path, best: Best) -> None:
    """Write ``best.json``, or remove it if it would be empty. Raises OSError."""
    folder = RunFolder(run_dir)
    if best.entries:
        entries = {
            name: {"step": entry.step, "value": entry.value, "checkpoint": folder.checkpoint(entry.step).name}
            for name, entry in best.entries.items()
        }
        write_atomically(folder.best_file, to_json(entries, indent=1) + "\n")
    else:
        folder.best_file.unlink(missing_ok=True)
    sync_folder(folder.path)


def step_named(run_dir: Path, name: str) -> int:
    """Return the step of a run's checkpoint that is given by its number, as ``best`` or as ``best:TASK``.

    Raises:
        ConfigError: it is none of them, or the run has no such best checkpoint.
    """
    if name.isdecimal():
        return int(name)
    word, _, task = name.partition(":")
    if word != BEST or name.endswith(":"):
        raise ConfigError(f"checkpoint {name}: name a step, {BEST}, or {BEST}:TASK")
    entries = read_best(run_dir).entries
    if not entries:
        raise ConfigError(
            f"checkpoint {name}: {run_dir} has no {RunFolder(run_dir).best_file.name} that can be read: it was trained "
            "without training.keep_best, or was not evaluated yet; name a step"
        )
    columns = [f"{SCORE}/{task}", task] if task else [str(SCORE), str(CROSS_ENTROPY)]
    found = next((entries[column] for column in columns if column in entries), None)
    if found is None:
        names = [column.removeprefix(f"{SCORE}/") for column in entries if "/" in column]
        have = ", ".join([BEST, *(f"{BEST}:{known}" for known in names)])
        raise ConfigError(f"checkpoint {name}: {run_dir} keeps no best checkpoint of {task}: it has {have}")
    return found.step


def checkpoint_named(run_dir: Path, name: str) -> Path:
    """Return the folder of the checkpoint that ``step_named`` finds. Raises ConfigError: see there, or it is gone."""
    step = step_named(run_dir, name)
    found = candidates(run_dir)
    here = [path for path in found if step_of(path) == step]
    if not here:
        steps = ", ".join(str(number) for number in sorted(set(map(step_of, found))))
        raise ConfigError(f"{run_dir} has no checkpoint of step {step}: name one of {steps}")
    return here[0]


def resolved(folder: Path) -> Path:
    """Return the best checkpoint for ``RUN/checkpoints/best`` or ``…/best:TASK``, any other folder as it is.

    Raises:
        ConfigError: see ``step_named``.
    """
    run_dir = folder.parent.parent
    if folder.parent == RunFolder(run_dir).checkpoints and folder.name.partition(":")[0] == BEST:
        return checkpoint_named(run_dir, folder.name)
    return folder
