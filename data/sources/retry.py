"""Reading on after a failure: a remote shard is opened anew at the last good row, a limited number of times."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from common.logs import ALL_RANKS, get_logger
from data.sources.rows import Row

LONGEST_WAIT_SECONDS = 60.0
# Answers that another attempt does not change: wrong address, no right to read, a server without ranges.
FINAL_STATUS = {400, 401, 403, 404, 405, 410, 416}

logger = get_logger(__name__)


class DataError(ValueError):
    """The data cannot be read as the run needs them: one line that names source, shard and row where they are known."""


def reason(error: BaseException) -> str:
    """Type and message of an error, on one line of moderate length."""
    text = " ".join(str(error).split()).partition(" For more information check: ")[0]
    return f"{type(error).__name__}: {text[:200]}"


@dataclass
class Retries:
    """How often and after which wait to try again, and how often that was needed.

    Args:
        limit: consecutive failures without one new row that are survived.
        first_seconds: mean wait before the first new attempt; doubles with each, up to 60 s.
        sleep: waits so many seconds.
    """

    limit: int
    first_seconds: float
    sleep: Callable[[float], None] = time.sleep
    counts: Counter[str] = field(default_factory=Counter)

    def rows(self, open_at: Callable[[int], Iterator[Row]], start: int, where: str) -> Iterator[Row]:
        """Rows from `start` on, whatever fails on the way.

        Args:
            open_at: gives the rows of the shard from a row on.
            start: first row.
            where: source and shard, for messages.

        Raises:
            DataError: the limit is reached, or the failure is one that lasts.
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
            raise DataError(f"{what}: check its address and your right to read it ({reason(error)})") from error
        if failures > self.limit:
            raise DataError(
                f"{what} after {failures} attempts: check the network and the server, or raise data.retries "
                f"({reason(error)})"
            ) from error
        self.counts[type(error).__name__] += 1
        # The jitter keeps a thousand readers from coming back at the same instant.
        wait = min(LONGEST_WAIT_SECONDS, self.first_seconds * 2.0 ** (failures - 1)) * random.uniform(0.5, 1.5)  # noqa: S311
        wait = max(wait, _asked_wait(error))
        text = f"data: {what}, attempt {failures + 1} in {wait:.1f} s ({reason(error)})"
        logger.warning(text, extra=ALL_RANKS)  # each rank reads its own shards
        self.sleep(wait)


def _response(error: Exception) -> Any:
    return getattr(error, "response", None)


def _is_final(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError | PermissionError | ImportError):
        return True
    return getattr(_response(error), "status_code", None) in FINAL_STATUS


def _asked_wait(error: Exception) -> float:
    """Seconds of the server's Retry-After, 0 without one (or with a date), at most LONGEST_WAIT_SECONDS."""
    headers = getattr(_response(error), "headers", None) or {}
    try:
        return min(LONGEST_WAIT_SECONDS, float(headers.get("retry-after", 0)))
    except ValueError:
        return 0.0
