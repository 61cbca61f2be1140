"""Requests to stop: all ranks finish the step, write a checkpoint and end with the documented code."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.launch import ROOT, rows, train
from tests.support.processes import started
from tests.support.small import small_config
from training.checkpoint.resume import read_checkpoint
from training.config.run import RunConfig

SECONDS = 30.0  # until the deepspeed launcher kills

LOOK = """
import os, signal, sys, time
from pathlib import Path
from training.run.stopping import StopRequests, watch_launcher
requests = StopRequests(Path(sys.argv[1]) / "stop", watch_launcher())
print(requests.look())
if sys.argv[2] == "file":
    Path(sys.argv[1], "stop").touch()
    time.sleep(1.1)
else:
    for name in sys.argv[2].split():
        os.kill(os.getpid(), signal.Signals[name])
print(requests.look())
requests.obeyed()
print(Path(sys.argv[1], "stop").exists())
"""


@pytest.mark.parametrize(
    ("what", "reason"),
    [("SIGTERM SIGTERM", "SIGTERM"), ("SIGINT SIGTERM", "SIGINT"), ("SIGUSR1", "SIGUSR1"), ("file", "/stop")],
)
def test_requests_are_noted(what: str, reason: str, tmp_path: Path):
    found = subprocess.run(
        [sys.executable, "-c", LOOK, str(tmp_path), what], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert found[0] == "None"
    assert found[1].endswith(reason)
    assert found[2] == "False"


@pytest.fixture
def config(corpus: dict[str, Any], tmp_path: Path) -> RunConfig:
    """The configuration of a run that ends only on request."""
    return small_config(
        tmp_path,
        data=corpus,
        parallel={"expert_parallel_size": 2},
        training={"steps": 100_000, "log_every": 1, "eval_examples": 16, "save_every": 7},
    )


def check_resume(config: RunConfig, folder: Path, stopped_after: int) -> None:
    """Resume from the checkpoint of the step after which the run stopped: no step is missing or made twice."""
    assert read_checkpoint(config.run_dir).state.step == stopped_after
    file = folder / "resumed.yaml"
    file.write_text(yaml.safe_dump(config.model_dump()))
    result = train(file, "--resume", f"training.steps={stopped_after + 3}", ranks=2)
    assert result.returncode == 0, result.stderr[-3000:]
    steps = [row["step"] for row in rows(config.run_dir) if row["split"] == "train"]
    assert steps == list(range(1, stopped_after + 4))


@pytest.mark.distributed
def test_ranks_stop_together_after_a_schedulers_warning(config: RunConfig, tmp_path: Path):
    script = ("bash", "launch/run_until_done.sh", "--backoff", "0")
    with started(config, tmp_path / "log", before=script) as run:
        run.wait_for_rows(3)
        run.process.send_signal(signal.SIGUSR1)  # to the script
        began = time.monotonic()
        assert run.process.wait(SECONDS) == 75, run.log.read_text()[-3000:]
        print(f"ended {time.monotonic() - began:.1f} s after SIGUSR1")
        last = run.steps()[-1]
        assert "stopped after step" in run.log.read_text()
    check_resume(config, tmp_path, last)


@pytest.mark.distributed
def test_ranks_stop_together_when_the_launcher_is_told_to(config: RunConfig, tmp_path: Path):
    with started(config, tmp_path / "log") as run:
        run.wait_for_rows(3)
        ranks = [run.find(f"rank {rank}") for rank in (0, 1)]
        run.find("launcher").send_signal(signal.SIGTERM)  # which it passes on, and then exits with 1 itself
        began = time.monotonic()
        for rank in ranks:
            rank.wait(SECONDS)
        print(f"ended {time.monotonic() - began:.1f} s after SIGTERM")
        assert run.process.wait(SECONDS) == 1
        assert run.steps() == list(range(1, run.steps()[-1] + 1))
        last = run.steps()[-1]
    check_resume(config, tmp_path, last)


@pytest.mark.distributed
@pytest.mark.long  # another launch and up to half a minute of waiting
def test_ranks_stop_when_the_launcher_is_gone(config: RunConfig, tmp_path: Path):
    with started(config, tmp_path / "log") as run:
        run.wait_for_rows(3)
        ranks = [run.find(f"rank {rank}") for rank in (0, 1)]
        run.find("deepspeed").kill()
        for rank in ranks:
            rank.wait(SECONDS)
        last = run.steps()[-1]
    assert read_checkpoint(config.run_dir).state.step == last
