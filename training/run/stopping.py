"""Requests to stop: a signal, a ``stop`` file in the run folder, the end of the launcher.

Requests are only recorded here. The trainer adds them up over all ranks in each step, so that all ranks stop after the
same one.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LOOK_SECONDS = 1.0  # between checks of the file, which may be on a network file system
LAUNCHER = b"deepspeed.launcher.launch"


class StopRequests:
    """Stop requests to this process; signal handlers are installed on construction. Repeated signals change nothing.

    On SIGTERM or SIGINT the deepspeed launcher sends SIGTERM to all ranks, and kills them 30 s later. SIGUSR1 ends the
    launcher, and all three end ``deepspeed`` itself, which started it. The ranks would train on unnoticed, so the end
    of either is a stop request, too.

    Args:
        file: whose existence is a stop request; None: no file is looked for.
        launcher_gone: from ``watch_launcher``.
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
        """Return why this process was asked to stop, or None."""
        if self.reason is None and time.monotonic() - self.looked >= LOOK_SECONDS:
            self.looked = time.monotonic()
            if self.file is not None and self.file.exists():
                self.reason = str(self.file)
            elif self.launcher_gone():
                self.reason = "the end of the launcher"
        return self.reason

    def obeyed(self) -> None:
        """Remove the file, so that it does not stop the next run."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)


def watch_launcher() -> Callable[[], bool]:
    """Return a function that tells whether the deepspeed launcher of this process, or its own parent, has ended.

    Call it early: a launcher that has ended before is not recognized.
    """
    parent = os.getppid()
    try:
        is_launcher = LAUNCHER in Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:
        is_launcher = False
    if not is_launcher:  # a shell may end before the programs that it started
        return lambda: False
    grandparent = _parent(parent)
    return lambda: os.getppid() != parent or _parent(parent) != grandparent


def _parent(pid: int) -> int | None:
    """Return the parent of another process, or None if that process has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return None
