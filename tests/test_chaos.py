"""The short form of ``python -m tests.chaos``: a rank is killed in a save, under the restart script."""

from pathlib import Path

import pytest

from tests import chaos
from tests.chaos import MOMENTS, format_row, run_trials, uninterrupted
from tests.support.processes import launcher_command


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder in which the run without a kill is done."""
    uninterrupted(tmp_path)
    return tmp_path


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of half the steps: the launcher starts twice, and that takes long enough."""
    monkeypatch.setattr(chaos, "STEPS", chaos.STEPS // 2)


@pytest.mark.distributed
@pytest.mark.usefixtures("half", "work")
def test_a_killed_run_gives_what_an_uninterrupted_one_gives(tmp_path: Path):
    number = MOMENTS.index("save")
    (trial,) = run_trials(tmp_path, range(number, number + 1), seed=0, command=launcher_command)
    assert trial.equal, format_row(trial)


@pytest.mark.distributed
@pytest.mark.long  # ten restarts of two ranks under the launcher: six minutes
def test_ten_killed_runs_give_what_an_uninterrupted_one_gives(work: Path):
    trials = run_trials(work, range(10), seed=1)
    assert all(trial.equal for trial in trials), "\n".join(map(format_row, trials))
