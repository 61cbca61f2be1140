"""The cost of watching is computed from blocks with and without it."""

import pytest

from benchmarks.monitoring import report


def test_both_costs_are_shares_of_a_step_without(capsys: pytest.CaptureFixture[str]):
    steps = {False: [(1.0, 0.5), (1.0, 0.5), (9.0, 0.5)], True: [(1.01, 0.51)] * 3}  # one block met a busy machine
    evaluations = {False: [(2.0, 2.0)], True: [(3.0, 2.5)]}
    report(steps, evaluations, every=10, eval_every=1000)
    wall, processor = capsys.readouterr().out.splitlines()[1:]
    assert "a step without 100.00 ms; rows +1.000 ms per step, evaluations +1.000 ms per step; together +2.00%" in wall
    assert (
        "a step without 50.00 ms; rows +1.000 ms per step, evaluations +0.500 ms per step; together +3.00%" in processor
    )
