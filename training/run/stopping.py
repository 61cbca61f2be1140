"""Requests to stop: signals, a ``stop`` file in the run's folder, a launcher that is gone.

A request is only noted here. The trainer sums the notes of all ranks in each step, so that all stop after the same one.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LOOK_SECONDS = 1.0  # between looks at the file, which may be on a network file system
LAUNCHER = b"deepspeed.launcher.launch"


class StopRequests:
    """Of one process. Signals are noted from its making on; repeated ones change nothing.

    The deepspeed launcher answers SIGTERM and SIGINT by sending SIGTERM to all ranks, and kills them 30 s later. It
    dies of SIGUSR1, and so does ``deepspeed`` itself of all three: the ranks would go on unseen, so that is a request.

    Args:
        file: whose existence is a request; None: there is none to look for.
        launcher_gone: of ``watch_launcher``.
    """

    def __init__(self, file: Path | None, launcher_gone: Callable[[], bool]):
        self.file = file
        self.reason: str | None = None
        self.looked = -LOOK_SECONDS
        self.launcher_gone = launcher_gone
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name

    def look(self) -> str | None:
        """Why this process was asked to stop, if it was."""
        if self.reason is None and time.monotonic() - self.looked >= LOOK_SECONDS:
            self.looked = time.monotonic()
            if self.file is not None and self.file.exists():
                self.reason = str(self.file)
            elif self.launcher_gone():
                self.reason = "the end of the launcher"
        return self.reason

    def obeyed(self) -> None:
        """Remove the file: the next run is not meant."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)


def watch_launcher() -> Callable[[], bool]:
    """Tells whether the deepspeed launcher that started this process, or the command that started it, has ended.

    To be called early: of a launcher that has ended by then, nothing is known.
    """
    parent = os.getppid()
    try:
        is_launcher = LAUNCHER in Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:
        is_launcher = False
    if not is_launcher:  # a shell may well end before what it started
        return lambda: False
    grandparent = _parent(parent)
    return lambda: os.getppid() != parent or _parent(parent) != grandparent


def _parent(pid: int) -> int | None:
    """Of another process; None when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return None
