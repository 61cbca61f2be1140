"""The entries of this project, started as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from common.ports import free_port
from common.project import ROOT


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def launch(config: Path, *arguments: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    """``deepspeed --num_gpus N train.py --config …``."""
    deepspeed = str(Path(sys.executable).with_name("deepspeed"))
    start = [deepspeed, "--num_gpus", str(ranks), "--master_port", str(free_port()), "train.py"]
    return run([*start, "--config", str(config), *arguments])


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
