"""Evaluates each run on the tasks, then makes its row from the files in its folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import data.tasks
from studies.finetuning.trials import Trial
from studies.results import record
from studies.results.record import held_out_figures, last_validation, row_of
from studies.results.rows import Row
from studies.runner.runs import Run
from training.checkpoint.store.state import candidates
from training.monitoring.columns import DROPPED_FRACTION

FOLDER = "answers"  # in that of a run
RESULTS_FILE = "results.json"  # that evaluate.py writes there


class Asked(NamedTuple):
    """How runs are evaluated.

    Args:
        tasks: their names.
        split: of all tasks.
        limit: most examples of each; None: all.
        answers: ``generated``, ``likeliest`` or ``both``, of which the generated ones count.
        folder: of prepared tasks.
    """

    tasks: tuple[str, ...]
    split: str
    limit: int | None
    answers: str
    folder: str

    def identity(self) -> dict[str, Any]:
        """Return what scores depend on, besides the run."""
        return {key: value for key, value in self._asdict().items() if key != "folder"}

    def program(self, run_dir: Path) -> list[str]:
        """Return the arguments of Python that evaluate a run."""
        limit = [] if self.limit is None else ["--limit", str(self.limit)]
        return [
            "evaluate.py", str(run_dir), "--tasks", *self.tasks, "--split", self.split, *limit,
            "--answers", self.answers, "--task-folder", self.folder, "--out", str(run_dir / FOLDER),
        ]  # fmt: skip


class Recorder(record.Recorder[Trial]):
    """Evaluates each run on the tasks, then appends its row.

    Args:
        asked: how it is evaluated.
        of_study: see ``studies.results.record.Recorder``.
    """

    def __init__(self, asked: Asked, *of_study: Any):
        super().__init__(*of_study)
        self.asked = asked

    def program(self, run: Run, *, planned: bool = False) -> Sequence[str] | None:
        """Return how to evaluate the run, unless it is evaluated or did not come to its end."""
        trained = run.folder.summary() is not None and run.folder.has_checkpoint()
        if planned or (trained and not read_results(run.dir)):
            return self.asked.program(run.dir)
        return None

    def row(self, run: Run, trial: Trial) -> Row:
        """Return the row of a run that is over."""
        validation, results = held_out_figures(last_validation(run)), read_results(run.dir)
        tasks = {name: results[name] for name in self.asked.tasks if name in results}
        own = {
            "model": trial.model.kind,
            "pretrained": str(trial.model.run),
            "weights": trial.model.weights if run.config.training.init_from else None,
            "batch": run.config.training.global_batch_size,
            "learning_rate": float(run.config.optimizer.learning_rate),
            "asked": self.asked.identity(),
            "score": sum(task["score"] for task in tasks.values()) / len(tasks) if tasks else None,
            "tasks": {name: _of_task(name, task) for name, task in tasks.items()},
            "validation": validation,
            "dropped_eval": validation.get(DROPPED_FRACTION),
            **trained_sizes(run.dir),
        }
        return row_of(run, trial, self.base, own, self.surroundings)


def read_results(run_dir: Path) -> dict[str, Any]:
    """Return what ``evaluate.py`` found, by task; nothing before it has ended."""
    try:
        found = json.loads((run_dir / FOLDER / RESULTS_FILE).read_text(encoding="utf-8"))["results"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_task(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """The results of a task, and the headline of each baseline."""
    score = data.tasks.get(name).score
    baselines = {baseline: score(metrics) for baseline, metrics in result["baselines"].items()}
    return {key: result[key] for key in ("score", "generated", "likeliest", "examples")} | {"baselines": baselines}


def trained_sizes(run_dir: Path) -> dict[str, int | None]:
    """Return parameters that a run trains, and bytes of their optimizer's state, by its newest checkpoint."""
    folders = candidates(run_dir)
    if not folders:
        return {"parameters_trained": None, "optimizer_bytes": None}
    from training.checkpoint.store.index import WEIGHT, Index  # imports torch

    index = Index.read(folders[0])
    trained = sum(p.numel for p in index.parameters.values() if not p.frozen)
    per_element = sum(index.dtype(state).itemsize for state in index.states if state != WEIGHT)
    factored = sum(_tensor_bytes(file) for file in folders[0].glob("optimizer-*.safetensors"))
    return {"parameters_trained": trained, "optimizer_bytes": trained * per_element + factored}


def _tensor_bytes(file: Path) -> int:
    """Return the bytes of the tensors in a safetensors file, without its header."""
    with file.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
    return file.stat().st_size - 8 - header
