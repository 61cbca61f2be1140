"""Ranges of elements in files as runs: nothing is lost, nothing is invented, and what ZeRO cuts is short."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.checkpoint.store.runs import Run, Runs


@st.composite
def cuts(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Ranges that follow one another, often of equal size and in files at equal distances."""
    ranges, position = [], 0
    for _ in range(draw(st.integers(0, 4))):
        count, each, file, step = (draw(st.integers(*limits)) for limits in ((1, 5), (1, 3), (0, 9), (-2, 3)))
        for i in range(count):
            ranges.append((position, position + each, abs(file + i * step)))
            position += each
    return ranges


@given(ranges=cuts(), seed=st.integers(0, 99), data=st.data())
def test_runs_say_what_the_ranges_said(ranges: list[tuple[int, int, int]], seed: int, data: st.DataObject):
    shuffled = [*ranges, (3, 3, 7), (0, 0, 1)]  # two that are empty
    random.Random(seed).shuffle(shuffled)
    runs = Runs.of(shuffled)
    numel = ranges[-1][1] if ranges else 0
    assert runs.numel == numel and [*runs.overlapping(0, numel)] == ranges
    assert runs.last_file == max((file for *_, file in ranges), default=-1)
    assert Runs.from_values(json.loads(json.dumps(runs.to_values()))) == runs
    start, stop = sorted((data.draw(st.integers(0, numel)), data.draw(st.integers(0, numel + 2))))
    wanted = [found for found in ranges if max(start, found[0]) < min(stop, found[1])]
    assert [*runs.overlapping(start, stop)] == wanted


def test_equal_shares_of_512_ranks_are_one_run():
    numel, ranks = 5120 * 20480, 512
    each = numel // ranks
    assert Runs.of((i * each, (i + 1) * each, i) for i in range(ranks)).runs == (Run(0, ranks, each, 0, 1),)
    each = -(-1000 // ranks)  # 500 ranks of 2 elements, and none for the others
    edges = [(min(i * each, 1000), min((i + 1) * each, 1000), i) for i in range(ranks)]
    assert Runs.of(edges).runs == (Run(0, 500, 2, 0, 1),)
    # 64 experts of 8 shares each: rank e + 64 k holds the k-th share of expert e.
    experts = [(e * 80 + k * 10, e * 80 + k * 10 + 10, e + 64 * k) for e in range(64) for k in range(8)]
    assert len(Runs.of(experts).runs) == 64


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ([(0, 3, 0), (4, 6, 0)], "element 3 is in no range"),
        ([(1, 3, 0)], "element 0 is in no range"),
        ([(0, 4, 0), (3, 6, 0)], "element 3 is in several ranges"),
        ([(0, 4, 0), (0, 4, 1)], "element 0 is in several ranges"),
    ],
)
def test_holes_and_overlaps_are_refused(ranges: list[tuple[int, int, int]], words: str):
    with pytest.raises(ValueError, match=words):
        Runs.of(ranges)


@pytest.mark.parametrize("values", [[[1, 2, 0]], [[0, 2, 0, 1]], [[1, 0, 0, 0]], [[1, 2, -1, 0]], [[3, 2, 1, -1]], [3]])
def test_values_that_are_no_runs_are_refused(values: list[list[int]]):
    with pytest.raises((TypeError, ValueError)):
        Runs.from_values(values)
    with pytest.raises(TypeError, match="whole numbers"):
        Runs.from_values([[1, 2.0, 0, 0]])  # type: ignore[list-item]
