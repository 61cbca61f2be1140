"""Progress on stderr: a line every few seconds, on a terminal and in a log alike."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

SECONDS = 5.0  # between lines at first; later a tenth of the time so far, so that hours give no thousands of lines

Item = TypeVar("Item")


def show_progress(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Yield the items; say every few seconds how many of them are done, and at the end how long it took.

    Args:
        items: to go through.
        what: such as ``counting tokens of documents``.
    """
    report = Progress(what, len(items))
    for number, item in enumerate(items, 1):
        yield item
        report.update(number)
    report.close()


class Progress:
    """Counts of one piece of work.

    Args:
        what: is done.
        total: of what is counted; None if unknown.
        first: count to begin with, when earlier work is continued.
    """

    def __init__(self, what: str, total: int | None, first: int = 0) -> None:
        self._what, self._total, self._count = what, total, first
        self._start = self._shown = time.monotonic()

    def update(self, count: int) -> None:
        """Set the count; shown if the last line is some seconds old."""
        self._count = count
        if time.monotonic() - self._shown >= _pause(self._shown - self._start):
            self._show(f"{count:,}{f' of {self._total:,}' if self._total is not None else ''}")

    def close(self) -> None:
        """Show the end, if any line was shown before."""
        if self._shown != self._start:
            self._show(f"{self._count:,}, done")

    def _show(self, state: str) -> None:
        self._shown = time.monotonic()
        print(f"{self._what}: {state}, {self._shown - self._start:.0f} s", file=sys.stderr, flush=True)


def _pause(elapsed: float) -> float:
    return max(SECONDS, elapsed / 10)


@contextmanager
def show_elapsed(what: str) -> Iterator[None]:
    """Say every few seconds that work without counts is still running; it must release Python's lock."""
    start, done = time.monotonic(), threading.Event()

    def tick() -> None:
        while not done.wait(_pause(time.monotonic() - start)):
            print(f"{what}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def run_interruptibly(work: Callable[[], None]) -> None:
    """Run work that spends its time outside Python in a thread, so that Ctrl-C ends the wait for it at once.

    Python handles a signal only between its own instructions. After ``KeyboardInterrupt`` the work is still running:
    the process must then end by ``os._exit``.

    Raises:
        Exception: what ``work`` raises.
    """
    errors: list[BaseException] = []

    def target() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)  # a signal that another thread receives does not end a wait
    if errors:
        raise errors[0]
