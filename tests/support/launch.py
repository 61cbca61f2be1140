"""The entries of this project: started as a user starts them, or as forks that have nothing to import any more."""

import json
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from common.ports import free_port
from common.project import ROOT
from tests.support.forks import ENVIRONMENT, TIMEOUT_SECONDS, outcome, script
from tests.support.ranks import rank_environments
from training.monitoring.columns import undeclared
from training.run.folder import RunFolder

Completed = subprocess.CompletedProcess[str]


def run(command: list[str]) -> Completed:
    """Run a command in new processes, whose number of threads is as the project sets it."""
    environment = os.environ | ENVIRONMENT
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)


def launch(config: Path, *arguments: str, ranks: int = 2) -> Completed:
    """Run ``deepspeed --num_gpus N train.py --config …``, the real launcher: 15 seconds of a core for imports alone."""
    deepspeed = str(Path(sys.executable).with_name("deepspeed"))
    start = [deepspeed, "--num_gpus", str(ranks), "--master_port", str(free_port()), "train.py"]
    return run([*start, "--config", str(config), *arguments])


def python(*command: str, ranks: int = 1) -> Completed:
    """Run ``python *command`` in a fork, or in one for each rank of a launcher; the first word is a file or ``-m``."""
    return _ended(list(command), rank_environments(ranks) if ranks > 1 else [{}])


def train(config: Path, *arguments: str, ranks: int = 1) -> Completed:
    """Run ``train.py --config …`` in forks: as one process alone, or as the ranks that the launcher would start."""
    environments = rank_environments(ranks) if ranks > 1 else [{}]
    return _ended(["train.py", "--config", str(config), *arguments], environments)


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of ``metrics.jsonl``, every key of which must be a declared column."""
    found = [json.loads(line) for line in RunFolder(run_dir).metrics_file.read_text().splitlines()]
    assert {key for row in found for key in undeclared(row)} == set()
    return found


def _ended(command: list[str], environments: list[dict[str, str]]) -> Completed:
    """Run a process for each environment until all have ended, the others by force when one fails, as the launcher."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        processes = [script(command, log, environment) for environment in environments]
        deadline, code = time.monotonic() + TIMEOUT_SECONDS, 0
        try:
            while running := [process.sentinel for process in processes if process.exitcode is None]:
                code = next((process.exitcode for process in processes if process.exitcode), 0)
                if code:
                    break
                if not wait(running, deadline - time.monotonic()):
                    raise subprocess.TimeoutExpired(command, TIMEOUT_SECONDS)
        finally:
            for process in processes:
                process.kill()
                process.join()
        code = code or next((process.exitcode for process in processes if process.exitcode), 0)
        return outcome(command, code, log)
