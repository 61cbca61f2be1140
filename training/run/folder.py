"""What a run leaves behind besides metrics and checkpoints: its configuration and its summary."""

import functools
import json
import platform
import subprocess
import tomllib
from typing import Any

import deepspeed
import torch
import transformers
from omegaconf import OmegaConf

from common.files import write_atomically
from common.project import ROOT
from training.checkpoint.store.state import SUMMARY_FILE
from training.config.run import RunConfig


def write_config(config: RunConfig) -> None:
    """``config.yaml``: every key, resolved; ``train.py --config`` accepts it."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(config.model_dump()), config.run_dir / "config.yaml")


def write_summary(config: RunConfig, values: dict[str, Any]) -> None:
    """``summary.json``: ``values``, versions and the commit of the code."""
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepspeed": deepspeed.__version__,
        "transformers": transformers.__version__,
    }
    summary = {**values, "versions": versions, "git_commit": code_version()["git_commit"]}
    write_atomically(config.run_dir / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")


@functools.cache
def code_version() -> dict[str, str | None]:
    """Of this program: ``version`` (None outside a checkout or an installation) and ``git_commit``."""
    project = ROOT / "pyproject.toml"
    try:
        version = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        version = None
    return {"version": version, "git_commit": _git_commit()}


def _git_commit() -> str | None:
    """The commit of this code, with ``-dirty`` if it was changed; None outside a git checkout."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],  # noqa: S607
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
