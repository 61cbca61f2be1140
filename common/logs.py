"""The log of a run: plain lines, rank 0 alone unless a record is for every rank.

Modules log to ``get_logger(__name__)``. Programs call ``configure_logging`` once, also those that a run starts itself,
such as data workers. Until then only warnings and errors are shown, as the ``logging`` module shows them.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

ROOT_LOGGER = "st_moe"
# ``logger.error(..., extra=ALL_RANKS)``: what this rank alone can tell.
ALL_RANKS = {"all_ranks": True}
# ``logger.warning(..., extra=NOTICE)``: of no interest if an error follows, see ``hold_notices``.
NOTICE = {"notice": True}


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module: ``get_logger(__name__)``."""
    return logging.getLogger(f"{ROOT_LOGGER}.{name}")


def configure_logging(rank: int | None = None) -> None:
    """Show this process's log: INFO on stdout, warnings and errors on stderr. Repeated calls replace earlier ones.

    Args:
        rank: of this process among all. Other ranks than 0 show only records with ``extra=ALL_RANKS``. None: the
            environment's RANK, or 0 without one.
    """
    logger = logging.getLogger(ROOT_LOGGER)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a dependency may have added a handler of its own to the root logger
    logger.handlers = [_Lines(_rank() if rank is None else rank)]


@contextmanager
def hold_notices() -> Iterator[None]:
    """Show the records with ``extra=NOTICE`` when the block has ended; not at all if it raises."""
    handlers = [handler for handler in logging.getLogger(ROOT_LOGGER).handlers if isinstance(handler, _Lines)]
    for handler in handlers:
        handler.held = []
    ended = False
    try:
        yield
        ended = True
    finally:
        for handler in handlers:
            held, handler.held = handler.held or [], None
            for record in held if ended else []:
                handler.emit(record)


def _rank() -> int:
    """The environment's RANK; 0 if it is missing or no number, which only a training run refuses."""
    text = os.environ.get("RANK", "").strip()
    return int(text) if text.isdecimal() else 0


class _Lines(logging.Handler):
    """Writes records to stdout or stderr, above a progress bar if there is one.

    A record is written as its text, after ``warning: `` or ``error: `` and, on other ranks than 0, after ``rank N: ``.
    """

    def __init__(self, rank: int):
        super().__init__()
        self.rank = rank
        self.held: list[logging.LogRecord] | None = None
        self.addFilter(self._is_shown)

    def emit(self, record: logging.LogRecord) -> None:
        if self.held is not None and getattr(record, "notice", False):
            self.held.append(record)
            return
        try:
            _write_line(self.format(record), sys.stdout if record.levelno < logging.WARNING else sys.stderr)
        except OSError as error:  # a full disk is no reason to end a run
            with suppress(OSError):
                print(f"warning: lines of the log are lost: {error.strerror}", file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        rank = f"rank {self.rank}: " if self.rank else ""
        return level + rank + super().format(record)

    def _is_shown(self, record: logging.LogRecord) -> bool:
        return self.rank == 0 or getattr(record, "all_ranks", False)


def _write_line(text: str, stream: TextIO) -> None:
    tqdm = sys.modules.get("tqdm")  # a bar exists only where tqdm is imported
    if tqdm is None:
        stream.write(f"{text}\n")
    else:
        tqdm.tqdm.write(text, file=stream)
    stream.flush()
