"""The checks of the GPU path run: at toy sizes on a CPU, with the code that a card runs."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import runs
from benchmarks.gpu.__main__ import Worker, watch
from benchmarks.gpu.accounting import union
from benchmarks.gpu.results import Report, Results, final_path, merge, table
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.sparse_layer import relative_error, row_counts
from benchmarks.gpu.worker import STEPS
from tests.support.corpus import write_corpus
from tests.support.forks import script
from tests.support.launch import python


@pytest.mark.distributed
def test_the_rehearsal_passes_every_step(tmp_path: Path):
    # 6 is below; 1 imports what all other tests import; 10 is 7 through a compiler.
    numbers = [number for number in STEPS if number not in ("1", "6", "10")]
    options = ["--cpu-rehearsal", "--data", str(tmp_path), "--out", str(tmp_path), "--steps", ",".join(numbers)]
    done = python("-m", "benchmarks.gpu", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads((tmp_path / "gpu_cpu_rehearsal.json").read_text())["steps"]
    assert list(steps) == numbers
    assert sum(len(step["checks"]) for step in steps.values()) >= 30
    assert steps["7"]["values"]["micro-batch 2"]["tokens_per_second"] > 0
    assert not (tmp_path / "gpu_partial.json").exists()


class Forked:
    """A process of ``runs``, as a fork that has nothing to import any more."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]):
        self.process = script(command[1:], log, environment)

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> None:
        self.process.join()

    def kill(self) -> None:
        self.process.kill()

    def send_signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


@pytest.mark.distributed
def test_runs_of_the_rehearsal_learn_and_survive_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_corpus(tmp_path / "data")
    monkeypatch.setattr(runs, "start_process", Forked)
    report = Report(Results(tmp_path / "partial.json"), "6", STEPS["6"].title, 3000.0)
    runs.check_runs(Setting("cpu", True, tmp_path / "data", tmp_path), report)
    report.finish()
    assert report.step["status"] == "ok", report.step
    assert report.step["values"]["killed after step"] >= 4
    assert report.step["values"]["killed against zero1-bf16_autocast"]["first difference at step"] is None


def test_cases_of_rows_are_what_their_names_say():
    cases = row_counts(96, 4)
    assert cases["equal"] is None
    for name, counts in cases.items():
        assert counts is None or (len(counts) == 4 and sum(counts) <= 96), name
    ragged, one_empty, trailing = cases["ragged"], cases["one empty"], cases["trailing rows"]
    assert ragged is not None and len(set(ragged)) > 1 and sum(ragged) == 96
    assert one_empty is not None and one_empty.count(0) == 1
    assert trailing is not None and sum(trailing) < 96


def test_nothing_but_nothing_equals_zero():
    zero = torch.zeros(3)
    assert relative_error(zero, zero) == 0
    assert relative_error(torch.ones(3), zero) == float("inf")
    assert not relative_error(torch.full((3,), float("nan")), torch.ones(3)) < 1


def test_a_failing_part_is_recorded_and_the_rest_goes_on(tmp_path: Path):
    results = Results(tmp_path / "partial.json")
    report = Report(results, "2", "a step", 60)
    with report.part("broken"):
        raise RuntimeError("wrong\nindex")
    with report.part("late"):
        report.require(100)
        report.value("never", 1)
    with report.part("left out"):
        sys.exit("error: missing")
    report.below("error", float("nan"), 1.0)
    report.value("speed", 3.0)
    report.finish()
    step = Results(results.path).steps["2"]  # it is on disk
    assert step["status"] == "failed"
    assert [error["part"] for error in step["errors"]] == ["broken", "late", "left out"]
    assert step["errors"][0]["reason"] == "RuntimeError: wrong index"
    assert "Traceback" in step["errors"][0]["trace"]
    assert step["values"] == {"speed": 3.0}
    shown = table(results.values)
    assert "FAIL error: nan, limit < 1" in shown
    assert "ERROR broken: RuntimeError: wrong index" in shown


@pytest.mark.parametrize(
    ("code", "late", "status"),
    [("import time; time.sleep(100)", 1000.0, "killed"), ("import sys; sys.exit('CUDA error')", 0.0, "died")],
)
def test_a_step_that_hangs_or_dies_ends_its_process_alone(tmp_path: Path, code: str, late: float, status: str):
    results = Results(tmp_path / "partial.json")
    report = Report(results, "3", "a step", 60)
    report.value("before", 1)
    report.step["began"] = time.time() - late
    results.save()
    worker = Worker([sys.executable, "-c", code], tmp_path / "log", {})
    failure = watch(worker, results.path, time.time() + 100)
    assert failure is not None
    assert worker.process.returncode is not None
    found = Results(results.path)
    found.end("3", *failure)
    assert found.steps["3"]["status"] == status
    assert found.steps["3"]["values"] == {"before": 1}
    assert ("CUDA error" in found.steps["3"]["errors"][0]["reason"]) == (status == "died")


def test_steps_of_an_earlier_run_stay_unless_measured_again(tmp_path: Path):
    path = final_path(tmp_path, {"card": "NVIDIA H100 80GB HBM3"})
    assert path.name == "gpu_nvidia_h100_80gb_hbm3.json"
    merge({"machine": {}, "steps": {"10": {"status": "ok"}, "2": {"status": "failed"}}}, path)
    merge({"machine": {}, "steps": {"2": {"status": "ok"}}}, path)
    assert json.loads(path.read_text())["steps"] == {"2": {"status": "ok"}, "10": {"status": "ok"}}


def test_overlapping_spans_count_once():
    assert union([(0, 10), (5, 12), (20, 30), (22, 25)]) == 22
