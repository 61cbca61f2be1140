"""The folder of a run: the only place that knows the names of its files."""

import json
import math
import platform
import shlex
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from common.files import sync_folder, write_atomically
from common.project import code_version
from common.strict_json import finite_or_null, to_json
from training.config.errors import ConfigError
from training.config.run import RunConfig

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # what PyYAML has of libyaml is ten times as fast
PACKAGES = ("torch", "deepspeed", "transformers")  # whose versions the summary names


def check_place(config_file: str | Path, overrides: Sequence[str], config: RunConfig) -> None:
    """Check that a run's own ``config.yaml`` is used for the run that it lies in, unless the place is named.

    Args:
        config_file: the argument of ``--config``.
        overrides: ``key=value`` arguments.
        config: of both.

    Raises:
        ConfigError: the run was copied or moved, or the current folder is another.
    """
    folder = RunFolder(Path(config_file).parent)
    is_run = Path(config_file).name == folder.config_file.name and (
        folder.metrics_file.exists() or folder.has_checkpoint()
    )
    is_named = any(override.startswith(("training.name=", "training.output_dir=")) for override in overrides)
    if not is_run or is_named or folder.path.resolve() == config.run_dir.resolve():
        return
    here = folder.path.resolve()
    raise ConfigError(
        f"--config {config_file} lies in the run folder {folder.path}, but names the run {config.run_dir}: add "
        f"training.output_dir={folder.path.parent} training.name={here.name} for the run in that folder, or name the "
        "one that you mean"
    )


class RunFolder:
    """Paths and plain files of a run.

    Args:
        path: ``RunConfig.run_dir``, such as ``runs/tiny``; need not exist.
    """

    def __init__(self, path: Path):
        self.path = path
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.examples_file = path / "examples.jsonl"
        self.summary_file = path / "summary.json"
        self.tensorboard = path / "tensorboard"
        self.profile = path / "profile"  # traces of torch.profiler
        self.checkpoints = path / "checkpoints"
        self.vocabulary = path / "vocabulary"  # a copy, with which the run can be moved
        self.text_file = path / "text.json"  # origin and license of the training text
        self.latest_file = self.checkpoints / "latest"
        self.best_file = path / "best.json"  # which checkpoints are best
        self.stop_file = path / "stop"
        self.lock_file = path / ".lock"

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint after ``step`` updates."""
        return self.checkpoints / f"step_{step:08d}"

    def holds_run(self) -> bool:
        """Return whether anything but the lock is there."""
        return self.path.exists() and any(path != self.lock_file for path in self.path.iterdir())

    def has_checkpoint(self) -> bool:
        """Return whether a checkpoint was published, be it intact or not."""
        return any(self.checkpoints.glob("step_*"))

    def latest(self) -> str | None:
        """Return the name of the checkpoint that ``latest`` names, None if there is no such file."""
        try:
            return self.latest_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None

    def set_latest(self, checkpoint: Path) -> None:
        """Let ``latest`` name a published checkpoint."""
        write_atomically(self.latest_file, checkpoint.name)
        sync_folder(self.checkpoints)

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows of ``metrics.jsonl`` so far; a line that a crash has truncated is skipped, null is NaN."""
        if not self.metrics_file.is_file():
            return []
        rows = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            rows.append({key: math.nan if value is None else value for key, value in row.items()})
        return rows

    def summary(self) -> dict[str, Any] | None:
        """Return what ``summary.json`` holds; None unless the run has finished."""
        try:
            summary = json.loads(self.summary_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return summary if isinstance(summary, dict) else None

    def is_done(self, steps: int) -> bool:
        """Return whether the run has finished, its last evaluation included, after at least ``steps`` updates."""
        summary = self.summary()
        return summary is not None and isinstance(summary.get("steps"), int) and summary["steps"] >= steps

    def write_config(self, config: RunConfig) -> None:
        """Write ``config.yaml``: every key, resolved; ``train.py --config`` accepts it."""
        self.path.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(config.model_dump()), self.config_file)

    def saved_config(self) -> dict[str, Any]:
        """Return the sections of ``config.yaml``; none if it cannot be read."""
        try:
            values = yaml.load(self.config_file.read_text(encoding="utf-8"), LOADER)  # noqa: S506 - a safe loader
        except (OSError, ValueError, yaml.YAMLError):
            values = None
        return values if isinstance(values, dict) else {}

    def train_command(self, ranks: int, *arguments: str, name: str | None = None) -> str:
        """Return the command that trains with this configuration, for users to type.

        Args:
            ranks: number of processes.
            arguments: more of ``train.py``. Where the run was moved or copied, the command also names its place, and
                its copy of the vocabulary.
            name: of a new run beside this one; None: this run.
        """
        start = "python" if ranks == 1 else f"deepspeed --quiet --num_gpus {ranks}"
        training = self.saved_config().get("training", {})
        place = []
        if Path(training.get("output_dir", ""), training.get("name", "")).resolve() != self.path.resolve():
            place = [f"training.output_dir={self.path.parent}"]
            name = name or self.path.resolve().name
        if name is not None:
            place.append(f"training.name={name}")
        vocabulary = self.saved_config().get("data", {}).get("vocabulary", "")
        if self.vocabulary.is_dir() and not Path(vocabulary).is_dir():
            place.append(f"data.vocabulary={self.vocabulary}")
        return f"{start} train.py {shlex.join(['--config', str(self.config_file), *place, *arguments])}"

    def continue_command(self, summary: dict[str, Any]) -> str:
        """Return the command that trains on, as far again as a finished run has come.

        Args:
            summary: what ``summary.json`` holds.
        """
        config, steps, ranks = self.saved_config(), summary["steps"], summary["world_size"]
        optimizer = config.get("optimizer", {})
        if optimizer.get("schedule") in ("linear", "cosine"):
            end = optimizer.get("decay_steps") or config.get("training", {}).get("steps", steps)
            if end <= steps:  # the learning rate is at its floor: a new schedule, on the weights
                name = f"{self.path.resolve().name}-continued"
                return self.train_command(ranks, f"training.init_from={self.path}", name=name)
            return self.train_command(ranks, "--resume", f"training.steps={end}", f"optimizer.decay_steps={end}")
        return self.train_command(ranks, "--resume", f"training.steps={2 * steps}")

    def write_summary(self, values: dict[str, Any]) -> None:
        """Write ``summary.json``: ``values``, versions and the commit of the code."""
        versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}
        summary = {**values, "versions": versions, "git_commit": code_version()["git_commit"]}
        write_atomically(self.summary_file, to_json(finite_or_null(summary), indent=2) + "\n")
