"""Statistics of training from large logits, worked by hand."""

from typing import Any

import pytest

from studies.round_off.plan import Start
from studies.round_off.recovery import bar_of, paired, summarize


def row(start: Start, seed: int, cross_entropy: float | None, back_at: int | None = None) -> dict[str, Any]:
    return {
        "variant": start.name, "factor": start.factor, "z_loss": start.z_loss, "precision": start.precision,
        "seed": seed, "status": "stable" if cross_entropy else "diverged", "cross_entropy": cross_entropy,
        "router_z_loss": 4.0, "max_router_logit": 1.0, "dropped_fraction": 0.1, "back_at": back_at, "curve": [],
    }  # fmt: skip


SMALL, LARGE, HELPED = Start(1.0, False), Start(100.0, False), Start(100.0, True)
ROWS = [
    row(SMALL, 0, 4.0, 2), row(SMALL, 1, 4.1, 2), row(SMALL, 2, 4.2, 2),  # mean 4.1, standard deviation 0.1
    row(LARGE, 0, 4.4), row(LARGE, 1, 4.3), row(LARGE, 2, None),
    row(HELPED, 0, 4.3, 50), row(HELPED, 1, 4.31, 70), row(HELPED, 3, 4.0),
]  # fmt: skip


def test_the_bar_is_the_mean_of_small_logits_and_two_deviations() -> None:
    assert bar_of(ROWS) == pytest.approx(4.3)
    assert bar_of([row(SMALL, 0, 4.0), row(LARGE, 0, 4.0)]) is None


def test_runs_that_are_not_above_the_bar_reach_it() -> None:
    small, large, helped = summarize(ROWS)
    assert [r.start for r in (small, large, helped)] == [SMALL, LARGE, HELPED]
    assert [(r.reached, r.runs) for r in (small, large, helped)] == [(3, 3), (1, 3), (2, 3)]
    assert small.difference is None
    assert large.difference is not None
    assert large.difference.value == pytest.approx((0.4 + 0.2) / 2)  # seed 2 has diverged
    assert helped.difference is not None
    assert helped.difference.value == pytest.approx((0.3 + 0.21) / 2)  # seed 3 has no small-logit run
    assert helped.back_at == [50, 70]


def test_variants_are_compared_seed_by_seed() -> None:
    found = paired(ROWS, LARGE, HELPED)
    assert found is not None
    assert found.value == pytest.approx((-0.1 + 0.01) / 2)
    assert paired(ROWS, LARGE, Start(5.0, False)) is None


@pytest.mark.parametrize(
    ("start", "name"), [(SMALL, "x1"), (HELPED, "x100_z_loss"), (Start(0.5, False, "fp32"), "x0.5_fp32")]
)
def test_the_name_says_how_a_run_starts(start: Start, name: str) -> None:
    assert start.name == name
