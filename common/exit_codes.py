"""Exit codes for scripts and schedulers; any other failure leaves a traceback and code 1.

Imports nothing that takes time: programs call ``end_quietly_on_interrupt`` before their other imports.
"""

import sys
from types import TracebackType

USER_ERROR = 2  # a mistake in configuration, data or layout: it would recur on a restart
UNHEALTHY = 3  # the guard gave up: see training/health/guard.py
LOST_RANK = 4  # the watchdog found a dead or hung rank
SAVE_FAILED = 5  # a checkpoint could not be written, and training.on_save_error = stop
STOPPED = 75  # on request, by a signal or a stop file, after writing a checkpoint (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # by Ctrl-C, before training: 128 + SIGINT, as shells report it


def end_quietly_on_interrupt() -> None:
    """Let Ctrl-C end this process with ``INTERRUPTED`` and without a traceback, wherever it is."""
    show = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.exit(INTERRUPTED)
        show(kind, error, trace)

    sys.excepthook = hook


class RunError(RuntimeError):
    """Ends the run on all ranks, with one line and an exit code of its own."""

    code: int
