"""The definition of divergence on curves worked by hand: 100 steps, a row each, so 5 % are 5 steps."""

import math

import pytest

from studies.divergence import judge
from tests.studies.conftest import row


def curve(*pieces: tuple[int, float]) -> list[dict[str, float]]:
    """``(rows, cross-entropy)`` pieces, one after another, from step 1."""
    values = [value for count, value in pieces for _ in range(count)]
    return [row(step, value) for step, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("pieces", "diverged_at", "spikes"),
    [
        (((100, 4.0),), None, 0),
        # the level is 4.0 from row 5 on; 4.5 is not more than 0.5 above it, 4.51 is
        (((20, 4.0), (80, 4.5)), None, 0),
        (((20, 4.0), (80, 4.51)), 21, 0),
        # rows 21-25 are 4 steps apart at most, a spike; with row 26 they are 5
        (((20, 4.0), (5, 9.0), (75, 4.0)), None, 1),
        (((20, 4.0), (6, 9.0), (74, 4.0)), 21, 0),
        # two spikes do not add up to a divergence, and the run may end in one
        (((20, 4.0), (5, 9.0), (1, 4.0), (5, 9.0), (60, 4.0), (3, 9.0)), None, 3),
        # the level is what was reached, not where the run began
        (((20, 7.0), (20, 4.0), (60, 5.0)), 41, 0),
        # a level takes the median of five rows: two low ones at the beginning are none
        (((2, 4.0), (98, 9.0)), None, 0),
        # a slow return over the level counts from where it left it
        (((20, 4.0), (30, 4.3), (50, 4.7)), 51, 0),
    ],
)
def test_curves_worked_by_hand(pieces: tuple[tuple[int, float], ...], diverged_at: int | None, spikes: int):
    verdict = judge(curve(*pieces), steps=100)
    assert (verdict.diverged_at, verdict.spikes) == (diverged_at, spikes)
    assert verdict.stable == (diverged_at is None) == (not verdict.reason)


def test_one_high_row_among_low_ones_does_not_move_the_level():
    # the median of five: a single row of 3.0 is no level of 3.0, from which 4.0 would be an excursion
    assert judge(curve((20, 4.0), (1, 3.0), (79, 4.0)), steps=100).stable


def test_logged_every_ten_steps_the_time_is_still_in_steps():
    rows = [row(10 * i, 9.0 if 20 <= i <= 21 else 4.0) for i in range(1, 101)]
    assert judge(rows, steps=1000).spikes == 1
    rows = [row(10 * i, 9.0 if 20 <= i <= 25 else 4.0) for i in range(1, 101)]
    assert judge(rows, steps=1000).diverged_at == 200


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_divergence_at_once(value: float):
    whole = curve((50, 4.0))
    for last in (row(51, value), row(51, 4.0, grad_norm=value), row(51, 4.0) | {"skipped_steps": 1}):
        assert judge([*whole, last], steps=100).diverged_at == 51


def test_no_rows_are_no_divergence():
    assert judge([], steps=100).stable
