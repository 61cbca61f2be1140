"""How the programs of this project begin and end: the terminal, idle threads, a user's mistake, a closed pipe.

Imports nothing that takes time. Call ``begin`` before torch is imported: OpenMP reads its settings once.
"""

import codecs
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from common.exit_codes import INTERRUPTED, USER_ERROR
from common.logs import configure_logging, get_logger
from common.paths import PLACE_ERRORS, why

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
ASCII_FORMS = {
    "→": "->", "…": "...", "±": "+-", "²": "^2", "≤": "<=", "≥": ">=", "↑": "^", "\N{MULTIPLICATION SIGN}": "x",
    "\N{EN DASH}": "-", "\N{EM DASH}": "-", "\N{RIGHT SINGLE QUOTATION MARK}": "'", "\N{NO-BREAK SPACE}": " ",
}  # fmt: skip
ASCII = "st_moe.ascii"

logger = get_logger("program")


def begin(rank: int | None = None) -> None:
    """Prepare this process: its terminal, its log and its idle threads; ``rank`` is for ``configure_logging``."""
    print_anything()
    configure_logging(rank)
    wait_passively()


def run(main: Callable[[], int | None]) -> NoReturn:
    """Exit with the code of ``main``; without a traceback for a place that cannot be used, Ctrl-C and a closed pipe."""
    begin()
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as in `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at exit
        code = 0
    except OSError as error:
        if error.errno not in PLACE_ERRORS:
            raise
        logger.error(why(error))
        code = USER_ERROR
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)


def print_anything() -> None:
    """Let stdout and stderr replace what their encoding lacks, rather than fail: an ASCII terminal or log."""
    codecs.register_error(ASCII, _replace)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ASCII)


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait for work, unless the user has set how they wait.

    By default they spin, on the cores that the data worker and other processes need.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _replace(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    characters = error.object[error.start : error.end]
    return "".join(ASCII_FORMS.get(character, "?") for character in characters), error.end
