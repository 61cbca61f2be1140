"""One run at a time writes to a run's folder: what a killed launcher left running must end before a restart begins."""

import os
import socket
import sys
import time
from pathlib import Path
from typing import IO

from common.files import acquire_lock
from training.config.errors import ConfigError
from training.run.folder import RunFolder

WAIT_SECONDS = 120.0
LOOK_SECONDS = 0.2


def lock_run(run_dir: Path, wait_seconds: float) -> IO[str]:
    """Take the folder for this process, until the file is closed or the process ends, however it ends.

    Args:
        run_dir: is made if it does not exist.
        wait_seconds: for another process that has it.

    Raises:
        ConfigError: it still has it then.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    file = RunFolder(run_dir).lock_file.open("a+", encoding="utf-8")
    deadline, said = time.monotonic() + wait_seconds, False
    try:
        while not acquire_lock(file):
            file.seek(0)
            owner = file.read().strip()
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"training.name = {run_dir.name}: {owner} still writes to {run_dir}: end it, or set another "
                    "training.name"
                )
            if not said:
                print(f"waiting for {owner}, which still writes to {run_dir}", file=sys.stderr, flush=True)
                said = True
            time.sleep(LOOK_SECONDS)
    except OSError as error:  # a file system without locks
        print(f"warning: {run_dir} cannot be locked ({error}): start no second run in it", file=sys.stderr)
    file.truncate(0)
    file.write(_describe(os.getpid()))
    file.flush()
    return file


def enter_run(run_dir: Path, rank: int, wait_seconds: float) -> IO[str] | None:
    """Before a run goes on: rank 0 takes the folder, before it looks for a checkpoint; others wait until it can.

    Raises:
        ConfigError: see ``lock_run``.
    """
    if rank == 0:
        return lock_run(run_dir, wait_seconds)
    _wait_for_rank_0(run_dir, wait_seconds)
    return None


def _wait_for_rank_0(run_dir: Path, wait_seconds: float) -> None:
    """On another rank of its host: until no older process has the folder, whose rendezvous this rank would join.

    Returns when it takes too long, or where it cannot be told: the rendezvous then fails, and a restart goes on.
    """
    deadline = time.monotonic() + wait_seconds
    while time.monotonic() < deadline:
        try:
            with RunFolder(run_dir).lock_file.open(encoding="utf-8") as file:
                owner = file.read()
                if acquire_lock(file, shared=True):
                    return
        except OSError:
            return
        if owner.endswith(_launch()) or socket.gethostname() not in owner:
            return
        time.sleep(LOOK_SECONDS)


def _describe(pid: int) -> str:
    return f"process {pid} of {_launch()}"


def _launch() -> str:
    """What the processes of a host that were started together have in common."""
    return f"{socket.gethostname()} (launcher {os.getppid()})"
