"""One run at a time writes to a run folder: what a killed launcher left running must end before a restart begins."""

import os
import socket
import time
from pathlib import Path
from typing import IO

from common.files import acquire_lock
from common.logs import get_logger
from training.config.errors import ConfigError
from training.run.folder import RunFolder

WAIT_SECONDS = 120.0
POLL_SECONDS = 0.2

logger = get_logger(__name__)


def begin_run(run_dir: Path, wait_seconds: float) -> IO[str]:
    """Lock the folder of a new run; look again, while waiting for the lock and under it, whether it still is one.

    Raises:
        ConfigError: another process has begun a run there, or holds the lock after the wait.
    """
    file = lock_run(run_dir, wait_seconds, new=True)
    check_new(run_dir)
    return file


def check_new(run_dir: Path, owner: str | None = None) -> None:
    """Raise ConfigError if the folder holds a run; ``owner`` is the process that writes to it now."""
    folder = RunFolder(run_dir)
    if not folder.holds_run():
        return
    if owner is not None:
        fix = f", to which {owner} writes: wait for its end and add --resume to continue it"
    elif folder.has_checkpoint():
        fix = "; add --resume to continue it"
    else:
        fix = " that has no checkpoint yet; add --restart to begin it again"
    raise ConfigError(
        f"training.name = {run_dir.name}: {run_dir} already holds a run{fix}, or set another training.name"
    )


def lock_run(run_dir: Path, wait_seconds: float, *, new: bool = False) -> IO[str]:
    """Lock the run folder for this process, until the returned file is closed or the process ends, however it ends.

    Args:
        run_dir: created if it does not exist.
        wait_seconds: how long to wait for a process that holds the lock.
        new: do not wait for a process that has begun a run there.

    Raises:
        ConfigError: that process still holds the lock after the wait.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    file = RunFolder(run_dir).lock_file.open("a+", encoding="utf-8")
    deadline, logged = time.monotonic() + wait_seconds, False
    try:
        while not acquire_lock(file):
            file.seek(0)
            owner = file.read().strip()
            if new:
                check_new(run_dir, owner)
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"training.name = {run_dir.name}: {owner} still writes to {run_dir}: end it, or set another "
                    "training.name"
                )
            if not logged:
                logger.info("waiting for %s, which still writes to %s", owner, run_dir)
                logged = True
            time.sleep(POLL_SECONDS)
    except OSError as error:  # a file system without locks
        logger.warning("%s cannot be locked (%s): start no second run in it", run_dir, error)
    file.truncate(0)
    file.write(_describe(os.getpid()))
    file.flush()
    return file


def enter_run(run_dir: Path, rank: int, wait_seconds: float) -> IO[str] | None:
    """Before a run resumes: lock its folder on rank 0, wait on the other ranks until rank 0 can.

    Raises:
        ConfigError: see ``lock_run``.
    """
    if rank == 0:
        return lock_run(run_dir, wait_seconds)
    _wait_for_rank_0(run_dir, wait_seconds)
    return None


def _wait_for_rank_0(run_dir: Path, wait_seconds: float) -> None:
    """Wait until no earlier process of this host holds the lock: this rank would join that process's rendezvous.

    Returns after ``wait_seconds`` in any case, and at once where the owner cannot be told. The rendezvous then fails,
    and a restart recovers.
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
        time.sleep(POLL_SECONDS)


def _describe(pid: int) -> str:
    return f"process {pid} of {_launch()}"


def _launch() -> str:
    """Return what the processes that one launcher started on a host have in common."""
    return f"{socket.gethostname()} (launcher {os.getppid()})"
