"""A trained run at other capacity factors, and steps timed without a run: in new processes, as a study starts them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from studies.design_space.evaluate import FILE
from tests.support.forks import TIMEOUT_SECONDS, fork
from tests.support.launch import python, rows, train
from tests.support.small import small_config
from training.config.run import RunConfig, validate
from training.timed_steps import time_steps


def config_of(corpus: dict[str, Any], tmp_path: Path) -> RunConfig:
    model = {"train_capacity_factor": 1.0, "min_capacity": 1}
    training = {"eval_examples": 16, "steps": 3, "eval_every": 3, "save_every": 3, "log_every": 1}
    files = corpus["validation_files"]
    data = corpus | {"num_workers": 0, "validation_files": {"one": files, "other": files}}
    return small_config(tmp_path, model=model, data=data, optimizer={"warmup_steps": 1}, training=training)


@pytest.mark.distributed
def test_the_weights_of_a_run_at_other_capacity_factors(corpus: dict[str, Any], tmp_path: Path):
    config, file = config_of(corpus, tmp_path), tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(config.model_dump()))
    assert train(file).returncode == 0
    measured = next(row for row in rows(config.run_dir) if row.get("split") == "validation")
    start = ["-m", "studies.design_space.evaluate", str(config.run_dir)]
    done = python(*start, "0.25", "2", "8")
    assert done.returncode == 0, done.stderr
    found = json.loads((config.run_dir / FILE).read_text())
    small, own, large = found["evaluations"]
    for key in (
        "cross_entropy",
        "dropped_fraction",
        "router_z_loss",
        "loss",
        "max_router_logit",
        "cross_entropy/other",
    ):
        assert own[key] == pytest.approx(measured[key], rel=1e-6, abs=1e-6), key  # the run's own evaluation again
    assert small["dropped_fraction"] > own["dropped_fraction"] >= large["dropped_fraction"] == 0
    assert small["cross_entropy"] != large["cross_entropy"]
    assert small["router_z_loss"] != 0 and found["device"]

    before = (config.run_dir / FILE).stat().st_mtime_ns
    assert python(*start, "8", "0.25").stdout == ""  # nothing is evaluated twice
    assert (config.run_dir / FILE).stat().st_mtime_ns == before
    mistake = python(*start, "0")
    assert mistake.returncode == 2
    assert mistake.stderr == "error: model.eval_capacity_factor = 0.0 must be greater than 0\n"
    nowhere = python("-m", "studies.design_space.evaluate", str(tmp_path / "nowhere"), "2")
    assert nowhere.returncode == 2 and "no such folder" in nowhere.stderr
    assert len(nowhere.stderr.splitlines()) == 1


def timed(values: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(time_steps(validate(values), 2)))


def test_steps_are_timed_without_a_run(corpus: dict[str, Any], tmp_path: Path):
    config, file = config_of(corpus, tmp_path), tmp_path / "times.json"
    process = fork(timed, config.model_dump(), file)
    process.join(TIMEOUT_SECONDS)
    assert process.exitcode == 0
    found = json.loads(file.read_text())
    assert [len(found[key]) for key in ("step_seconds", "processor_seconds", "tokens")] == [2, 2, 2]
    assert min(found["step_seconds"] + found["processor_seconds"] + found["tokens"]) > 0
    assert found["peak_memory_bytes"] > 1e8  # of the process: torch alone is larger
    assert not config.run_dir.exists()
