"""What the ranks report to the watchdog, and what follows from it: who is silent, who keeps the others waiting."""

import time
from typing import NamedTuple


class Beat(NamedTuple):
    """A rank's report."""

    number: int
    progress: int  # phases entered, and parts of them done
    step: int
    phase: str
    seconds: float  # in this phase, or since a part of it was done
    limit: float  # seconds that the phase may take


class AwakeClock:
    """Seconds that this process was awake.

    A suspended host, a stopped process or a C function that keeps the interpreter to itself delays its reports and its
    readings alike: nobody else is late because of that.

    Args:
        longest: seconds that one pause between two ticks counts at most.
    """

    def __init__(self, longest: float):
        self.longest, self.seconds, self.last = longest, 0.0, time.monotonic()

    def tick(self) -> float:
        """Count the time since the last tick, and return all of it."""
        now = time.monotonic()
        self.seconds += min(now - self.last, self.longest)
        self.last = now
        return self.seconds


class Beats:
    """The last report of each rank, and when it came by an ``AwakeClock``."""

    def __init__(self) -> None:
        self.last: dict[int, tuple[Beat, float]] = {}

    def note(self, rank: int, beat: Beat, now: float) -> None:
        """Take a report; one that is known already is no sign of life."""
        if rank not in self.last or self.last[rank][0].number != beat.number:
            self.last[rank] = (beat, now)

    def silent(self, now: float, limit: float) -> list[int]:
        """Return the ranks that have reported nothing new for more than ``limit`` seconds."""
        return [rank for rank, (_, seen) in sorted(self.last.items()) if now - seen > limit]

    def describe_silent(self, rank: int, now: float) -> str:
        """Return one line about a rank that is dead or stopped."""
        beat, seen = self.last[rank]
        return f"rank {rank} is dead or stopped: silent for {now - seen:.0f} s, after step {beat.step}, {beat.phase}"

    def describe_busy(self, rank: int, now: float) -> str:
        """Return one line about a rank whose process lives and whose interpreter does not run."""
        beat, seen = self.last[rank]
        return (
            f"rank {rank} hangs in step {beat.step}, {beat.phase}: its process lives but has run no Python for "
            f"{now - seen:.0f} s"
        )

    def hanging(self) -> str | None:
        """Return one line about the ranks furthest behind, if a rank has been in its phase for longer than it may."""
        beats = {rank: beat for rank, (beat, _) in self.last.items()}
        if not any(beat.seconds > beat.limit for beat in beats.values()):
            return None
        least = min(beat.progress for beat in beats.values())
        behind = [rank for rank, beat in beats.items() if beat.progress == least]
        beat = beats[behind[0]]
        names = ", ".join(map(str, behind))
        return f"rank {names} hangs in step {beat.step}, {beat.phase}, for {beat.seconds:.0f} s"
