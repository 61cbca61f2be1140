"""What a run's folder says: finished, diverged, unfinished, or another study's."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from studies.runner.execute import alone_in, last_words
from studies.runner.runs import Run, make_run
from tests.studies.conftest import row, write_rows
from training.config.errors import ConfigError


def new_run(config_file: str, out: Path, *arguments: str) -> Run:
    return make_run(config_file, ["training.steps=100", *arguments], "baseline", 0, out, {})


def test_a_finished_run(finished: Callable[..., Run]):
    result = finished("baseline", 1, 4.25, z=3.5, logit=2.5).result()
    assert (result.status, result.quality) == ("stable", -4.25)
    assert result.metrics == {"cross_entropy": 4.25, "router_z_loss": 3.5, "max_router_logit": 2.5}


def test_a_run_whose_loss_rose_diverged_although_it_finished(finished: Callable[..., Run]):
    run = finished("baseline", 1, 4.25)
    write_rows(run, [row(step, 4.0 if step < 8 else 9.0) for step in range(1, 11)])
    result = run.result()
    assert (result.status, result.verdict.diverged_at, result.quality) == ("diverged", 8, None)


def test_a_run_stopped_by_a_gradient_that_is_not_finite_diverged(config_file: str, tmp_path: Path):
    run = new_run(config_file, tmp_path)
    assert run.result().status == "unfinished"
    write_rows(run, [row(step, 4.0) for step in range(1, 20)])
    assert run.result().status == "unfinished"
    reason = "the gradient of step 20 is not finite, and optimizer.non_finite = stop; not finite among gradients: w"
    stop = {"split": "guard", "step": 20, "decision": "stop", "reason": reason}
    write_rows(run, [*(row(step, 4.0) for step in range(1, 20)), stop])
    result = run.result()
    assert (result.status, result.verdict.diverged_at, result.quality) == ("diverged", 20, None)
    assert result.verdict.reason == "the gradient of step 20 is not finite"


def test_a_line_truncated_by_a_kill_is_ignored(config_file: str, tmp_path: Path):
    run = new_run(config_file, tmp_path)
    write_rows(run, [row(1, 4.0)])
    with (run.dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(2, 4.0))[:20])
    assert [r["step"] for r in run.folder.rows()] == [1]


def test_only_what_cannot_be_resumed_is_removed(config_file: str, tmp_path: Path):
    run = new_run(config_file, tmp_path)
    write_rows(run, [row(1, 4.0)])
    run.clear_the_way()
    assert not run.dir.exists()
    (run.dir / "checkpoints").mkdir(parents=True)
    (run.dir / "checkpoints" / "latest").write_text("step_00000001")
    run.clear_the_way()
    assert run.can_resume()


def test_a_folder_of_other_runs_is_refused(finished: Callable[..., Run], config_file: str, tmp_path: Path):
    run = finished("baseline", 0, 4.0)
    run.check_same()
    other = make_run(config_file, ["training.steps=20"], "baseline", 0, tmp_path / "study", {})
    with pytest.raises(ConfigError, match=r"training\.steps = 10, not 20: set another --out|router_z_coefficient"):
        other.check_same()


def test_one_study_at_a_time_in_a_folder(tmp_path: Path):
    with alone_in(tmp_path), pytest.raises(ConfigError, match="using this folder"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass


def test_rows_are_frequent_enough_to_see_a_spike(config_file: str, tmp_path: Path):
    every = {}
    for steps in (100, 250, 100_000):
        run = make_run(config_file, [f"training.steps={steps}"], "baseline", 0, tmp_path, {})
        every[steps] = run.config.training.log_every
    assert every == {100: 1, 250: 2, 100_000: 10}  # the config's own is 10


def test_last_words_are_the_error(tmp_path: Path):
    log = tmp_path / "log"
    log.write_text("step 1\nerror: data.train_files = x: no file\n[launch] killing\n")
    assert last_words(log) == "error: data.train_files = x: no file"
    log.write_text("Traceback\nRuntimeError: out of memory\n  at exit\n")
    assert last_words(log) == "RuntimeError: out of memory"
    log.write_text("")
    assert last_words(log) == "its log is empty"


def test_a_key_that_the_study_sets_is_refused_rather_than_ignored(config_file: str, tmp_path: Path):
    for setting, fix in (
        ("training.seed=3", "use --seeds"),
        ("training.name=mine", "use --out"),
        ("training.output_dir=elsewhere", "use --out"),
        ("training.eval_every=10", "leave it out"),
        ("optimizer.non_finite=skip", "leave it out"),
    ):
        with pytest.raises(ConfigError, match=rf"^{setting}: the study sets .* for each run: {fix}"):
            new_run(config_file, tmp_path, setting)
    assert new_run(config_file, tmp_path, "training.log_every=1").config.training.log_every == 1
    new_run(config_file, tmp_path, "optimizer.non_finite=stop")  # the same value
    make_run(config_file, ["training.steps=100", "training.seed=1"], "v", 0, tmp_path, {"training.seed": 7})
