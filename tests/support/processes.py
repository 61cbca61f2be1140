"""A run under the real launcher, whose processes a test signals one by one."""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml

from common.ports import free_port
from tests.support.forks import ENVIRONMENT
from tests.support.launch import ROOT, rows
from training.config.run import RunConfig

PATIENCE_SECONDS = 150.0
# The argument by which to find a process of a run, from the leaves of the tree to its root.
NAMES = {"launcher": "deepspeed.launcher.launch", "deepspeed": str(Path(sys.executable).with_name("deepspeed"))}


class Started:
    """The processes of one command, and their output."""

    def __init__(self, command: list[str], run_dir: Path, log: Path):
        self.run_dir, self.log = run_dir, log
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | ENVIRONMENT | {"PATH": path}
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
            )

    def find(self, name: str) -> psutil.Process:
        """Return the process ``rank N``, ``launcher`` or ``deepspeed``. Raises ProcessLookupError."""
        word = f"--local_rank={name[-1]}" if name.startswith("rank") else NAMES[name]
        top = psutil.Process(self.process.pid)
        for process in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                words = process.cmdline()
                # The restart script has deepspeed among its arguments, too.
                if word in (words[1:2] if name == "deepspeed" else words):
                    return process
        raise ProcessLookupError(name)

    def steps(self) -> list[int]:
        """Return the steps of the training rows so far."""
        if not (self.run_dir / "metrics.jsonl").exists():
            return []
        return [row["step"] for row in rows(self.run_dir) if row["split"] == "train"]

    def wait_for_rows(self, count: int) -> None:
        """Wait until the run has logged ``count`` steps."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(self.steps()) < count:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.05)

    def end(self) -> None:
        """Kill every process that is left."""
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            for process in [*top.children(recursive=True), top]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
        self.process.wait()


def deepspeed_command(config: RunConfig, folder: Path, *arguments: str) -> list[str]:
    """Return the command ``deepspeed --num_gpus 2 train.py --config …``."""
    file = folder / f"{config.training.name}.yaml"
    file.write_text(yaml.safe_dump(config.model_dump()))
    start = [NAMES["deepspeed"], "--num_gpus", "2", "--master_port", str(free_port())]
    return [*start, "train.py", "--config", str(file), *arguments]


def launcher_command(config: RunConfig, folder: Path) -> list[str]:
    """Return the command that ``deepspeed`` runs on each host: the launcher, without the program above it."""
    hosts = base64.urlsafe_b64encode(json.dumps({"localhost": [0, 1]}).encode()).decode()
    program, _, _, _, port, *arguments = deepspeed_command(config, folder)
    assert program == NAMES["deepspeed"]
    start = [sys.executable, "-u", "-m", NAMES["launcher"], f"--world_info={hosts}", "--master_addr=127.0.0.1"]
    return [*start, f"--master_port={port}", *arguments]


@contextlib.contextmanager
def started(config: RunConfig, log: Path, *arguments: str, before: tuple[str, ...] = ()) -> Iterator[Started]:
    """Start a run of two ranks, its command after the words ``before``, and kill what is left of it at the end."""
    run = Started([*before, *deepspeed_command(config, log.parent, *arguments)], config.run_dir, log)
    try:
        yield run
    finally:
        run.end()
