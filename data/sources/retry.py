"""Retries: after a failure a shard is opened again at the row after the last one read, with backoff and a limit."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from common.logs import ALL_RANKS, get_logger
from common.paths import PLACE_ERRORS
from data.sources.rows import Row

LONGEST_WAIT_SECONDS = 60.0
# HTTP statuses that a retry does not change: wrong address, no read permission, no range requests.
FINAL_STATUS = {400, 401, 403, 404, 405, 410, 416}

logger = get_logger(__name__)


class DataError(ValueError):
    """The data cannot be read or is unusable: one line that names source, shard and row where known."""


def reason(error: BaseException) -> str:
    """Return the type and message of an error on one short line."""
    text = " ".join(str(error).split()).partition(" For more information check: ")[0]
    return f"{type(error).__name__}: {text[:200]}"


@dataclass
class Retries:
    """Retry policy, and counts of the retries.

    Args:
        limit: consecutive failures without a new row that are retried.
        first_seconds: mean wait before the first retry; doubles with each, up to 60 s.
        sleep: function that waits for a number of seconds.
        counts: retries by type of error.
    """

    limit: int
    first_seconds: float
    sleep: Callable[[float], None] = time.sleep
    counts: Counter[str] = field(default_factory=Counter)

    def rows(self, open_at: Callable[[int], Iterator[Row]], start: int, where: str) -> Iterator[Row]:
        """Yield the rows of a shard from row ``start``, opening it again after failures.

        Args:
            open_at: returns the rows of the shard from a given row.
            start: first row.
            where: source and shard, for messages.

        Raises:
            DataError: the limit is reached, or the failure is permanent.
        """
        row, failures = start, 0
        while True:
            try:
                for content in open_at(row):
                    row, failures = row + 1, 0
                    yield content
                return
            except Exception as error:
                failures += 1
                self._wait_or_give_up(error, failures, f"{where} cannot be read beyond row {row}")

    def _wait_or_give_up(self, error: Exception, failures: int, what: str) -> None:
        if isinstance(error, DataError):
            raise error
        if _is_final(error):
            raise DataError(f"{what}: check its address and your permission to read it ({reason(error)})") from error
        if failures > self.limit:
            raise DataError(
                f"{what} after {failures} attempts: check the network and the server, or raise data.retries "
                f"({reason(error)})"
            ) from error
        self.counts[type(error).__name__] += 1
        # Jitter spreads the retries of many readers.
        wait = min(LONGEST_WAIT_SECONDS, self.first_seconds * 2.0 ** (failures - 1)) * random.uniform(0.5, 1.5)  # noqa: S311
        wait = max(wait, _requested_wait(error))
        text = f"data: {what}, attempt {failures + 1} in {wait:.1f} s ({reason(error)})"
        logger.warning(text, extra=ALL_RANKS)  # each rank reads its own shards
        self.sleep(wait)


def _response(error: Exception) -> Any:
    return getattr(error, "response", None)


def _is_final(error: Exception) -> bool:
    if isinstance(error, ImportError) or (isinstance(error, OSError) and error.errno in PLACE_ERRORS):
        return True
    # Without a number when raised by fsspec and its file systems.
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return True
    return getattr(_response(error), "status_code", None) in FINAL_STATUS


def _requested_wait(error: Exception) -> float:
    """Return the server's Retry-After in seconds, at most LONGEST_WAIT_SECONDS; 0 without one or with a date."""
    headers = getattr(_response(error), "headers", None) or {}
    try:
        return min(LONGEST_WAIT_SECONDS, float(headers.get("retry-after", 0)))
    except ValueError:
        return 0.0
