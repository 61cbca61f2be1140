"""The definition of divergence on curves worked by hand: 100 steps, a row each, so a window is 5 rows."""

import math

import pytest

from studies.runner.divergence import judge
from tests.studies.conftest import row


def curve(*pieces: tuple[int, float]) -> list[dict[str, float]]:
    """``(rows, cross-entropy)`` pieces, one after another, from step 1."""
    values = [value for count, value in pieces for _ in range(count)]
    return [row(step, value) for step, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("pieces", "diverged_at", "spikes"),
    [
        (((100, 4.0),), None, 0),
        # the level is 4.0 from row 5 on; 4.3 is not more than 0.3 above it, 4.31 is, and no spike
        (((20, 4.0), (80, 4.3)), None, 0),
        (((20, 4.0), (80, 4.31)), 21, 0),
        # two high rows of five are a spike, three are the median
        (((20, 4.0), (2, 9.0), (78, 4.0)), None, 1),
        (((20, 4.0), (3, 9.0), (77, 4.0)), 21, 0),
        # two spikes do not add up to a divergence, and the run may end in one; if they fill a window, they do
        (((20, 4.0), (2, 9.0), (3, 4.0), (2, 9.0), (71, 4.0), (2, 9.0)), None, 3),
        (((20, 4.0), (2, 9.0), (2, 4.0), (2, 9.0), (74, 4.0)), 21, 1),
        # a good batch among bad ones hides nothing
        (((20, 4.0), *((2, 4.4), (1, 3.9)) * 26, (2, 4.0)), 21, 0),
        # the level is what was reached, not where the run began
        (((20, 7.0), (20, 4.0), (60, 5.0)), 41, 0),
        # a level takes a median: two low rows at the beginning are none, nor is a low one later
        (((2, 4.0), (98, 9.0)), None, 0),
        (((20, 4.0), (1, 3.0), (79, 4.2)), None, 0),
    ],
)
def test_curves_worked_by_hand(pieces: tuple[tuple[int, float], ...], diverged_at: int | None, spikes: int):
    verdict = judge(curve(*pieces), steps=100)
    assert (verdict.diverged_at, verdict.spikes) == (diverged_at, spikes)
    assert verdict.stable == (diverged_at is None) == (not verdict.reason)


def test_logged_every_ten_steps_the_time_is_still_in_steps():
    for last, expected in (
        (28, (None, 1)),
        (30, (200, 0)),
    ):  # a window is 20 rows: 9 high ones are a spike, 11 too many
        rows = [row(10 * i, 9.0 if 20 <= i <= last else 4.0) for i in range(1, 401)]
        verdict = judge(rows, steps=4000)
        assert (verdict.diverged_at, verdict.spikes) == expected
        # judged in the middle of the run, the window is the same
        assert judge(rows[:40], steps=4000) == verdict


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_divergence_at_once(value: float):
    whole = curve((50, 4.0))
    for last in (row(51, value), row(51, 4.0, grad_norm=value), row(51, 4.0) | {"skipped_steps": 1}):
        assert judge([*whole, last], steps=100).diverged_at == 51


def test_no_rows_are_no_divergence():
    assert judge([], steps=100).stable
