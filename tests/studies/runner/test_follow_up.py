"""What a study does after a run is trained: a program in the run's slot, then the study's own result."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from studies.runner.execute import run_locally, submit
from studies.runner.follow_up import FollowUp
from studies.runner.launcher import Local, Slurm
from studies.runner.runs import Run, make_run


class Noted(FollowUp):
    """Runs a program of one line of Python for each run, and notes which runs it finished."""

    def __init__(self, code: str):
        self.code, self.over = code, list[str]()

    def is_done(self, run: Run) -> bool:
        return run.name in self.over

    def program(self, run: Run, *, planned: bool = False) -> Sequence[str] | None:
        return ["-S", "-c", self.code, str(run.dir)] if planned or not (run.dir / "ran").exists() else None

    def finish(self, run: Run) -> None:
        self.over.append(run.name)


def test_the_program_runs_once_and_then_the_run_is_finished(finished: Callable[..., Run], tmp_path: Path):
    runs = [finished("a", seed, 4.0) for seed in range(3)]
    (runs[2].dir / "ran").touch()  # its program had ended when an earlier study was killed
    noted = Noted("import sys; open(sys.argv[1] + '/ran', 'x')")
    run_locally(runs, Local(ranks=1, jobs=2, gpus=0), None, noted)
    assert sorted(noted.over) == ["a-0", "a-1", "a-2"]
    run_locally(runs, Local(ranks=1, jobs=2, gpus=0), None, noted)
    assert len(noted.over) == 3


def test_a_program_that_fails_leaves_the_run_to_the_next_call(
    finished: Callable[..., Run], capsys: pytest.CaptureFixture[str]
):
    run, noted = finished("a", 0, 4.0), Noted("raise SystemExit('Error: no room')")
    run_locally([run], Local(ranks=1, jobs=1, gpus=0), None, noted)
    assert noted.over == []
    assert "a-0 failed with exit code 1: Error: no room" in capsys.readouterr().out


def test_jobs_of_slurm_end_with_the_program(
    config_file: str, finished: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    new = make_run(config_file, ["training.steps=20"], "b", 0, tmp_path / "study", {})
    over, half = finished("a", 0, 4.0), finished("a", 1, 4.0)
    (over.dir / "ran").touch()
    noted, slurm = Noted("pass"), Slurm(2, 8, None, ())
    last = f"srun --nodes=1 --ntasks=1 --gpus-per-task=1 python -S -c pass {half.dir}"
    assert slurm.script(half, noted.program(half, planned=True)).splitlines()[-1] == last
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/usr/bin/env bash\necho Submitted $(basename $1)\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/usr/bin:/bin")
    submit([new, over, half], slurm, noted)
    assert noted.over == ["a-0"]  # the others are submitted
    assert slurm.script_path(half).exists() and slurm.script_path(new).exists()
    assert not slurm.script_path(over).exists()
