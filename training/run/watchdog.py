"""Detects hung or dead ranks and ends the run, naming rank, step and phase.

A thread of each rank reports its step, its phase and the time in that phase to the rendezvous store, where rank 0 reads
them. A silent rank is dead or stopped. When all ranks report but none makes progress, the one furthest behind keeps the
others waiting. The store lives in rank 0: when it does not answer, the other ranks name rank 0.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

from common.exit_codes import LOST_RANK
from common.logs import ALL_RANKS, get_logger
from common.strict_json import to_json

SHARE = 0.6  # of timeout_seconds; agreeing on a verdict takes up to half as long again
LONGEST_TICK_SECONDS = 1.0
VERDICT = "watchdog/verdict"

logger = get_logger(__name__)


class Beat(NamedTuple):
    """A rank's report."""

    number: int
    progress: int  # phases entered
    step: int
    phase: str
    seconds: float  # in this phase


class Watchdog:
    """Watches from construction until ``close``. All ranks construct it together.

    Args:
        rank, world_size: this process among all.
        timeout_seconds: within which a stuck run ends.
        end: called with the reason; ends the process.
    """

    def __init__(
        self, rank: int, world_size: int, timeout_seconds: float, end: Callable[[str], None] | None = None
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.limit = SHARE * timeout_seconds
        self.tick = min(LONGEST_TICK_SECONDS, self.limit / 10)
        self.end = end or _end_process
        self.progress, self.step, self.phase, self.since = 0, 0, "starting", time.monotonic()
        self.heard = time.monotonic()  # last answer of the store
        self.beats: dict[int, tuple[Beat, float]] = {}  # on rank 0: each rank's last beat, and when it came
        self.closed = threading.Event()
        self.store = _connect(timeout_seconds) if world_size > 1 else None
        threading.Thread(target=self._report, daemon=True, name="watchdog: report").start()
        threading.Thread(target=self._watch, daemon=True, name="watchdog: watch").start()

    def enter(self, phase: str, step: int) -> None:
        """Report progress: this rank enters a phase."""
        self.progress, self.step, self.phase, self.since = self.progress + 1, step, phase, time.monotonic()

    def close(self) -> None:
        """Stop watching, so that ranks may end."""
        self.closed.set()

    def lost(self) -> str | None:
        """Return, after a failed collective, which ranks are gone, if that can be told; waits for a few beats."""
        time.sleep(4 * self.tick)
        silent = 3 * self.tick
        if self.rank != 0 and time.monotonic() - self.heard > silent:
            return f"rank 0 is gone; {self._own()}"
        return "; ".join(self._silent(silent)) or None

    def _own(self) -> str:
        return f"rank {self.rank} is in step {self.step}, {self.phase}"

    def _report(self) -> None:
        """Send beats and, on rank 0, read those of the others; may block when the store does not answer."""
        number = 0
        keys = [_key(rank) for rank in range(self.world_size)]
        known: list[str] = []
        while not self.closed.is_set():
            number += 1
            beat = Beat(number, self.progress, self.step, self.phase, time.monotonic() - self.since)
            with contextlib.suppress(RuntimeError):  # the store is gone: _watch reports it after a while
                if self.store is not None:
                    self.store.set(_key(self.rank), to_json(beat))
                    if self.rank == 0:
                        if len(self.beats) < self.world_size:
                            known = [key for key in keys if self.store.check([key])]
                        for key, value in zip(known, self.store.multi_get(known), strict=True):
                            self._note(int(key.rpartition("/")[2]), Beat(*json.loads(value)))
                    elif self.store.check([VERDICT]):
                        self.end("")
                else:
                    self._note(0, beat)
                self.heard = time.monotonic()
            self.closed.wait(self.tick)

    def _note(self, rank: int, beat: Beat) -> None:
        if rank not in self.beats or self.beats[rank][0].number != beat.number:
            self.beats[rank] = (beat, time.monotonic())

    def _watch(self) -> None:
        while not self.closed.wait(self.tick):
            reason = self._reason()
            if reason is None or self.closed.is_set():
                continue
            if self.store is not None and self.rank == 0:
                self.store.set(VERDICT, reason)
                time.sleep(3 * self.tick)  # the store ends with this process: let the others read it
            self.end(reason)

    def _reason(self) -> str | None:
        if self.rank != 0:
            # Rank 0 reports first if it can.
            gone = time.monotonic() - self.heard > self.limit + 4 * self.tick
            return f"rank 0 is dead or stopped: its store does not answer; {self._own()}" if gone else None
        silent = self._silent(self.limit)
        if silent:
            return "; ".join(silent)
        beats = {rank: beat for rank, (beat, _) in self.beats.items()}
        if not beats or max(beat.seconds for beat in beats.values()) <= self.limit:
            return None
        least = min(beat.progress for beat in beats.values())
        behind = [rank for rank, beat in beats.items() if beat.progress == least]
        beat = beats[behind[0]]
        names = ", ".join(map(str, behind))
        return f"rank {names} hangs in step {beat.step}, {beat.phase}, for {beat.seconds:.0f} s"

    def _silent(self, limit: float) -> list[str]:
        now = time.monotonic()
        return [
            f"rank {rank} is dead or stopped: silent for {now - seen:.0f} s, after step {beat.step}, {beat.phase}"
            for rank, (beat, seen) in sorted(self.beats.items())
            if now - seen > limit
        ]


def _key(rank: int) -> str:
    return f"watchdog/beat/{rank}"


def _connect(timeout_seconds: float) -> Any:
    """A separate connection to the rendezvous store: that of the process groups may be blocked in a collective."""
    from torch.distributed import TCPStore

    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_seconds),
    )


def _end_process(reason: str) -> None:
    if reason:
        logger.error("%s", reason, extra=ALL_RANKS)
    os._exit(LOST_RANK)  # the main thread may be blocked for good
