"""Which range of a tensor's elements is in which of many numbered files, in a few numbers.

ZeRO cuts every tensor into equal shares, one for each rank, so that hundreds of ranges are one ``Run``.
"""

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Run(NamedTuple):
    """Consecutive ranges of equal size; the file of each is ``step`` numbers after that of the one before.

    Attributes:
        start: first element of the first range.
        ranges: how many, at least 1.
        each: elements of a range, at least 1.
        file: number of the first range's file.
        step: 0 where there is one range.
    """

    start: int
    ranges: int
    each: int
    file: int
    step: int

    @property
    def stop(self) -> int:
        """The element after the last one."""
        return self.start + self.ranges * self.each

    @property
    def last_file(self) -> int:
        """Number of the last range's file."""
        return self.file + (self.ranges - 1) * self.step


@dataclass(frozen=True)
class Runs:
    """All elements of a tensor, from 0 on, in order.

    Raises:
        ValueError: a run is empty, or does not begin where the one before ends.
    """

    runs: tuple[Run, ...] = ()

    def __post_init__(self) -> None:
        position = 0
        for run in self.runs:
            if run.start != position or run.ranges < 1 or run.each < 1 or min(run.file, run.last_file) < 0:
                raise ValueError(f"{run} does not follow element {position}")
            position = run.stop

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int, int]]) -> "Runs":
        """Return the runs of ranges ``(start, stop, number of the file)`` in any order; empty ranges do not count.

        Raises:
            ValueError: an element is in no range, or in several.
        """
        found = np.array([*ranges], np.int64).reshape(-1, 3)
        return cls.of_arrays(found[:, 0], found[:, 1], found[:, 2])

    @classmethod
    def of_arrays(cls, starts: NDArray[np.int64], stops: NDArray[np.int64], files: NDArray[np.int64]) -> "Runs":
        """See ``of``: the columns of the ranges."""
        held = np.flatnonzero(starts < stops)
        order = held[np.argsort(starts[held], kind="stable")]
        starts, stops, files = starts[order], stops[order], files[order]
        ends = np.concatenate([[0], stops])
        wrong = np.flatnonzero(starts != ends[:-1])
        if len(wrong):
            element = min(starts[wrong[0]], ends[wrong[0]])
            raise ValueError(f"element {element} is in {'no range' if element == ends[wrong[0]] else 'several ranges'}")
        sizes, steps = stops - starts, np.diff(files)
        other_size = sizes[1:] != sizes[:-1]
        other_step = np.concatenate([[False], steps[1:] != steps[:-1]])[: len(other_size)]
        firsts, first = [0] if len(starts) else [], 0
        for number in (np.flatnonzero(other_size | other_step) + 1).tolist():
            if number == first + 1 and not other_size[number - 1]:
                continue  # the second range of a run, which sets its step
            firsts.append(number)
            first = number
        runs = []
        for first, end in itertools.pairwise([*firsts, len(starts)]):
            step = int(steps[first]) if end - first > 1 else 0
            runs.append(Run(int(starts[first]), end - first, int(sizes[first]), int(files[first]), step))
        return cls(tuple(runs))

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return self.runs[-1].stop if self.runs else 0

    @property
    def last_file(self) -> int:
        """The highest number of a file; -1 for none."""
        return max((max(run.file, run.last_file) for run in self.runs), default=-1)

    def overlapping(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield the whole ranges ``(start, stop, number of the file)`` that hold elements of ``[start, stop)``."""
        if start >= stop:
            return
        number = max(bisect.bisect_right(self.runs, start, key=lambda run: run.start) - 1, 0)
        for run in itertools.islice(self.runs, number, None):
            if run.start >= stop:
                return
            first = max(start - run.start, 0) // run.each
            last = min(-(-(stop - run.start) // run.each), run.ranges)
            for i in range(first, last):
                yield run.start + i * run.each, run.start + (i + 1) * run.each, run.file + i * run.step

    def to_values(self) -> list[tuple[int, int, int, int]]:
        """Return the runs as JSON values: ranges, elements of each, number of the first file, step between files."""
        return [run[1:] for run in self.runs]

    @classmethod
    def from_values(cls, values: Sequence[Sequence[int]]) -> "Runs":
        """Return the runs that ``to_values`` has given. Raises TypeError or ValueError: they are none."""
        runs, position = [], 0
        for count, each, file, step in values:
            if not all(isinstance(value, int) for value in (count, each, file, step)):
                raise TypeError(f"{[count, each, file, step]} are not four whole numbers")
            runs.append(Run(position, count, each, file, step))
            position = runs[-1].stop
        return cls(tuple(runs))
