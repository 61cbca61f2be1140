"""How the programs of this project begin and end: the terminal, idle threads, a user's mistake, a reader that leaves.

Imports nothing that takes time. Call ``begin`` before torch is imported: OpenMP reads its settings once.
"""

import codecs
import io
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

from common.exit_codes import INTERRUPTED, USER_ERROR
from common.logs import configure_logging, get_logger
from common.paths import PLACE_ERRORS, why

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
ASCII_FORMS = {
    "→": "->", "…": "...", "±": "+-", "²": "^2", "µ": "u", "≤": "<=", "≥": ">=", "↑": "^",
    "\N{MULTIPLICATION SIGN}": "x", "\N{EN DASH}": "-", "\N{EM DASH}": "-", "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{NO-BREAK SPACE}": " ",
}  # fmt: skip
ASCII = "st_moe.ascii"

logger = get_logger("program")


def begin(rank: int | None = None) -> None:
    """Prepare this process: its terminal, its log and its idle threads; ``rank`` is for ``configure_logging``."""
    print_anything()
    configure_logging(rank)
    wait_passively()


def run(main: Callable[[], int | None]) -> NoReturn:
    """Exit with the code of ``main``; without a traceback for a place that cannot be used, and for Ctrl-C."""
    begin()
    try:
        code = main()
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in PLACE_ERRORS:
            raise
        logger.error(why(error))
        code = USER_ERROR
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)


class Output(io.FileIO):
    """Where stdout or stderr goes; drops what it is given when the reader has left, as in ``… | head``.

    So a program does all of its work, and its exit code says how that ended, whoever reads along. Of another error,
    such as a full disk, the program hears once: Python writes again at exit what could not be written.
    """

    def __init__(self, descriptor: int, name: str):
        super().__init__(descriptor, "wb", closefd=False)
        self.name, self.failed = name, False

    def write(self, data: Any) -> int:
        """Write as the base class does. Raises OSError at the first failure."""
        try:
            return super().write(data)
        except OSError as error:
            if not self.failed and not isinstance(error, BrokenPipeError):
                self.failed = True
                raise OSError(error.errno, error.strerror, self.name) from None
            return memoryview(data).nbytes


def print_anything() -> None:
    """Let stdout and stderr take everything: what their encoding lacks is replaced, what nobody reads is dropped."""
    codecs.register_error(ASCII, _replace)
    if sys.stdout is sys.__stdout__:  # nobody has replaced it
        sys.stdout = _opened(sys.stdout, "stdout")
    if sys.stderr is sys.__stderr__:
        sys.stderr = _opened(sys.stderr, "stderr")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ASCII)


def is_read() -> bool:
    """Whether stdout is no pipe that its reader has left."""
    try:
        descriptor = sys.stdout.fileno()
    except OSError:  # no file of the system
        return True
    poll = select.poll()
    poll.register(descriptor, 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait for work, unless the user has set how they wait.

    By default they spin, on the cores that the data worker and other processes need.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _opened(stream: TextIO | None, name: str) -> TextIO:
    """Return an ``Output`` for the same file, buffered alike; of a stream that the user has closed, for no file."""
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    stream.flush()
    assert isinstance(stream, io.TextIOWrapper)
    raw = Output(stream.fileno(), name)
    buffer = raw if stream.write_through else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer,
        encoding=stream.encoding,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _replace(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    characters = error.object[error.start : error.end]
    return "".join(ASCII_FORMS.get(character, "?") for character in characters), error.end
