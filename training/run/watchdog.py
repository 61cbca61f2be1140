"""Detects hung, dead or failed ranks and ends the run on all ranks, naming rank, step and phase.

A thread of each rank reports its step, its phase and the time in that phase to the rendezvous store, where rank 0 reads
them. When all ranks report but none makes progress, the one furthest behind keeps the others waiting. A rank that has
been silent for long is dead or stopped, unless its lifeline answers: a store of its own, served by a thread that needs
no interpreter, for a long C function may keep the interpreter from reporting. The rendezvous store lives in rank 0, or
in torchrun: when it does not answer, the other ranks name rank 0. Rank 1 watches rank 0's reports.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable

from common.exit_codes import LOST_RANK
from common.logs import ALL_RANKS, get_logger
from common.strict_json import to_json
from training.run.beats import AwakeClock, Beat, Beats
from training.run.lifeline import open_lifeline, probe
from training.run.process import Process
from training.run.rendezvous import LastWords, connect, have_read, leave_words, read_words, wait_for_readers, within

SHARE = 0.6  # of timeout_seconds: collectives time out later, without naming a rank
LONGEST_TICK_SECONDS = 1.0
PAUSE_TICKS = 5  # what a longer pause of this process's own counts
PROBE_SECONDS = 5.0  # in which a lifeline must answer, at most
TELL_SECONDS = 15.0  # for last words, which rank 0 lets the others read

logger = get_logger(__name__)


class Watchdog:
    """Watches from construction until ``close``. All ranks construct it together, after ``rendezvous.meet``.

    Args:
        process: this process among all.
        timeout_seconds: within which a run that makes no progress ends.
        silence_seconds: after which a silent rank is dead or stopped; at most the share of ``timeout_seconds``.
        end: called with a line to show, or an empty one, and the exit code; ends the process.
    """

    def __init__(
        self,
        process: Process,
        timeout_seconds: float,
        silence_seconds: float,
        end: Callable[[str, int], None] | None = None,
    ) -> None:
        self.process, self.rank, self.world_size = process, process.rank, process.world_size
        self.limit = SHARE * timeout_seconds
        self.silence = min(silence_seconds, self.limit)
        self.tick = min(LONGEST_TICK_SECONDS, self.silence / 10)
        self.end = end or _end_process
        self.progress, self.step, self.phase, self.spent = 0, 0, "starting", 0.0
        self.phase_limit = self.limit
        self.beats, self.clock = Beats(), AwakeClock(PAUSE_TICKS * self.tick)
        self.watched = range(self.world_size) if self.rank == 0 else range(int(self.rank == 1))
        self.heard = 0.0  # last answer of the store, by the clock of _watch
        self.awake = AwakeClock(PAUSE_TICKS * self.tick)
        self.probed: dict[int, float] = {}  # when a silent rank's lifeline answered
        self.words: LastWords | None = None  # of the rank that ended the run
        self.told = False  # this rank has said why it ends the run
        self.closed = threading.Event()
        self.store, self.lifeline = None, None
        if self.world_size > 1:
            self.store = connect(timeout_seconds)
            self.lifeline, address = open_lifeline(PROBE_SECONDS)
            self.store.set(_lifeline(self.rank), address)
        threading.Thread(target=self._report, daemon=True, name="watchdog: report").start()
        threading.Thread(target=self._watch, daemon=True, name="watchdog: watch").start()

    def enter(self, phase: str, step: int, limit: float | None = None) -> None:
        """Report progress: this rank enters a phase, which may take ``limit`` seconds."""
        self.phase_limit = self.limit if limit is None else limit
        self.progress, self.step, self.phase, self.spent = self.progress + 1, step, phase, 0.0

    def advance(self) -> None:
        """Report progress in the present phase, whose time begins again."""
        self.progress, self.spent = self.progress + 1, 0.0

    def close(self) -> None:
        """Stop watching, so that ranks may end."""
        self.closed.set()
        self.lifeline = None

    def tell(self, text: str, code: int, seconds: float = TELL_SECONDS) -> LastWords | None:
        """Tell the other ranks that this one ends the run: they end, too, with the same code.

        Returns:
            The words that stand: another rank may have been the first. None if there is nobody to tell.
        """
        self.told = True
        if self.store is None:
            return None
        try:  # by a connection of its own: that of the other threads may be blocked
            return within(min(seconds, TELL_SECONDS), lambda: self._leave_words(text, code))
        except (OSError, RuntimeError):
            return None

    def _leave_words(self, text: str, code: int) -> LastWords:
        store = connect(PROBE_SECONDS)
        standing = leave_words(store, self.process, text, code)
        wait_for_readers(store, self.process, 3 * self.tick)
        return standing

    def lost(self) -> str | None:
        """Return, after a failed collective, which ranks are gone, if that can be told; waits for a few beats."""
        self.told = True  # this rank reports itself
        time.sleep(4 * self.tick)
        if self.rank != 0:
            heard = self.awake.seconds - self.heard <= 3 * self.tick
            return None if heard else f"rank 0 is gone; {self._own()}"
        now = self.clock.seconds
        gone = self.beats.silent(now, 3 * self.tick)
        return "; ".join(self.beats.describe_silent(rank, now) for rank in gone) or None

    def _own(self) -> str:
        return f"rank {self.rank} is in step {self.step}, {self.phase}"

    def _report(self) -> None:
        """Send beats, read those of the watched ranks and judge them; blocks when the store does not answer."""
        number = 0
        while not self.closed.is_set():
            number += 1
            before = self.clock.seconds
            now = self.clock.tick()
            self.spent += now - before
            beat = Beat(number, self.progress, self.step, self.phase, self.spent, self.phase_limit)
            with contextlib.suppress(RuntimeError):  # the store is gone: _watch reports it after a while
                if self.store is None:
                    self.beats.note(0, beat, now)
                else:
                    self.store.set(_key(self.rank), to_json(beat))
                    self._read(now)
                    self._obey()
                self.heard = self.awake.seconds
                self._judge(now)
            self.closed.wait(self.tick)

    def _read(self, now: float) -> None:
        assert self.store is not None
        keys = [_key(rank) for rank in self.watched]
        if len(self.beats.last) < len(keys):
            keys = [key for key in keys if self.store.check([key])]
        for key, value in zip(keys, self.store.multi_get(keys) if keys else [], strict=True):
            self.beats.note(int(key.rpartition("/")[2]), Beat(*json.loads(value)), now)

    def _obey(self) -> None:
        """End this process if another rank has ended the run; one rank of each other host shows why."""
        words = self.words = read_words(self.store)
        if words is None or words.rank == self.rank or self.told or self.closed.is_set():
            return
        have_read(self.store)
        wait_for_readers(self.store, self.process, 3 * self.tick)
        elsewhere = words.host != socket.gethostname() and self.process.local_rank == 0
        self.end(str(words) if elsewhere else "", words.code)

    def _judge(self, now: float) -> None:
        reason = self._reason(now)
        if reason is None or self.told or self.closed.is_set():
            return
        code = LOST_RANK
        if self.store is not None:
            standing = leave_words(self.store, self.process, reason, code)
            if standing.text != reason:
                return  # _obey ends this process
            wait_for_readers(self.store, self.process, 3 * self.tick)
        self.end(reason, code)

    def _reason(self, now: float) -> str | None:
        silent = self.beats.silent(now, self.silence)
        dead = self._dead(silent, now) if silent else []
        if dead:
            return "; ".join(self.beats.describe_silent(rank, now) for rank in dead)
        busy = self.beats.silent(now, self.limit)
        if busy:
            return "; ".join(self.beats.describe_busy(rank, now) for rank in busy)
        hanging = self.beats.hanging() if self.rank == 0 and not silent else None
        # A rank that was stopped in the phase in which the others wait is their reason: they reach the limit with it.
        late = self.beats.silent(now, PAUSE_TICKS * self.tick) if hanging else []
        dead = self._dead(late, now) if late else []
        return "; ".join(self.beats.describe_silent(rank, now) for rank in dead) or hanging

    def _dead(self, silent: list[int], now: float) -> list[int]:
        """The silent ranks whose lifelines do not answer; each is asked about twice in the silence limit."""
        ask = [rank for rank in silent if now - self.probed.get(rank, -self.silence) >= self.silence / 2]
        seconds = min(PROBE_SECONDS, self.silence / 4)
        lives = [probe(self.store, _lifeline(rank), seconds) for rank in ask]
        deadline = time.monotonic() + seconds
        dead = []
        for rank, answered in zip(ask, lives, strict=True):
            if answered.wait(max(0.0, deadline - time.monotonic())):
                self.probed[rank] = now
            else:
                dead.append(rank)
        return dead

    def _watch(self) -> None:
        """Name rank 0 when the store does not answer; rank 0 reports first if it can."""
        while not self.closed.wait(self.tick):
            now = self.awake.tick()
            if self.store is not None and not self.told and now - self.heard > self.silence + PAUSE_TICKS * self.tick:
                self.end(f"rank 0 is dead or stopped: its store does not answer; {self._own()}", LOST_RANK)
                return


def _key(rank: int) -> str:
    return f"watchdog/beat/{rank}"


def _lifeline(rank: int) -> str:
    return f"watchdog/lifeline/{rank}"


def _end_process(reason: str, code: int) -> None:
    if reason:
        logger.error("%s", reason, extra=ALL_RANKS)
    os._exit(code)  # the main thread may be blocked for good
