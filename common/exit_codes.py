"""Exit codes for scripts and schedulers; any other failure leaves a traceback and code 1."""

USER_ERROR = 2  # a mistake in configuration, data or layout: a restart would meet it again
UNHEALTHY = 3  # the guard gave up: see training/health/guard.py
LOST_RANK = 4  # the watchdog found a rank that is dead or hangs
SAVE_FAILED = 5  # a checkpoint could not be written, and training.on_save_error = stop
STOPPED = 75  # asked to stop by a signal or a stop file; the checkpoint is written (EX_TEMPFAIL of sysexits.h)


class RunError(RuntimeError):
    """Ends the run on all ranks alike: one line, and a code of its own."""

    code: int
