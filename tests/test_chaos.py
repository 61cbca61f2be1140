"""The short form of ``python -m tests.chaos``: a rank is killed in a save, under the restart script."""

from pathlib import Path

import pytest

from tests.chaos import MOMENTS, format_row, run_trials


@pytest.mark.distributed
def test_a_killed_run_gives_what_an_uninterrupted_one_gives(tmp_path: Path):
    number = MOMENTS.index("save")
    (trial,) = run_trials(tmp_path, range(number, number + 1), seed=0)
    assert trial.equal, format_row(trial)
