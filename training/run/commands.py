"""Commands that this project prints for users to type."""

import shlex
from pathlib import Path
from typing import Any

import yaml

from training.run.folder import RunFolder


def saved_config(run_dir: Path) -> dict[str, Any]:
    """Return the sections of the run's ``config.yaml``; empty ones if it cannot be read."""
    try:
        values = yaml.safe_load(RunFolder(run_dir).config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        values = None
    return values if isinstance(values, dict) else {}


def train_command(run_dir: Path, ranks: int, *arguments: str) -> str:
    """Return the command that trains with the run's configuration: ``… train.py --config RUN/config.yaml …``.

    Args:
        run_dir: of the run. If it was moved or copied since, the command names the place that it has now.
        ranks: number of processes.
        arguments: more of ``train.py``.
    """
    start = "python" if ranks == 1 else f"deepspeed --num_gpus {ranks}"
    training = saved_config(run_dir).get("training", {})
    place = []
    if Path(training.get("output_dir", ""), training.get("name", "")).resolve() != run_dir.resolve():
        place = [f"training.output_dir={run_dir.parent}", f"training.name={run_dir.resolve().name}"]
    words = ["--config", str(run_dir / "config.yaml"), *place, *arguments]
    return f"{start} train.py {shlex.join(words)}"
