"""The study as a user starts it: real runs of the real ``train.py`` under the deepspeed launcher."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.support.launch import ROOT, python, run
from tests.support.small import small_config

VARIANTS = ["--variants", "baseline", "router_z_loss", "--baseline-seeds", "1", "--seeds", "1"]


def command(tmp_path: Path, corpus: dict[str, Any], out: str, *options: str) -> list[str]:
    config = small_config(tmp_path, data=corpus, training={"eval_examples": 16, "save_every": 5})
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(config.model_dump()))
    return [sys.executable, "-m", "studies.stability", "--config", str(file), "--out", str(tmp_path / out), *VARIANTS,
            *options]  # fmt: skip


@pytest.mark.distributed
def test_two_variants_end_in_a_table_and_are_not_run_again(corpus: dict[str, Any], tmp_path: Path):
    start = command(tmp_path, corpus, "study", "--steps", "10")
    first = python(*start[1:])
    assert first.returncode == 0, first.stderr[-3000:]
    out = tmp_path / "study"
    table = (out / "table.md").read_text()
    assert table in first.stdout
    results = json.loads((out / "table.json").read_text())
    assert [r["status"] for r in results["runs"]] == ["stable", "stable"]
    for result in results["runs"]:
        summary = json.loads((out / "runs" / f"{result['variant']}-0" / "summary.json").read_text())
        assert result["quality"] == -summary["validation_cross_entropy"]
        assert summary["steps"] == 10
    without, with_z = (r["router_z_loss"] for r in results["runs"])
    assert with_z < without  # ten steps are enough for the z-loss to show
    assert {"curves.png", "quality_stability.png", "report.md"} <= {path.name for path in out.iterdir()}

    again = python(*start[1:])
    assert "already finished: 2 of 2 runs" in again.stdout
    assert (out / "table.md").read_text() == table
    other = python(*start[1:], "training.global_batch_size=16")
    assert other.returncode == 2
    assert "training.global_batch_size = 8, not 16: set another --out" in other.stderr


def test_dry_run_of_a_cluster_study_prints_every_job_and_writes_nothing(tmp_path: Path):
    result = python(
        "-m", "studies.stability", "--config", "configs/st_moe_l.yaml", "--steps", "100000", "--launcher", "slurm",
        "--nodes", "8", "--out", str(tmp_path / "study"), "--dry-run",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("#!/usr/bin/env bash") == result.stdout.count("\nsbatch ") == 24
    assert "model.feed_forward=relu model.d_ff=4224" in result.stdout
    assert not (tmp_path / "study").exists()


def test_dry_run_of_the_sweep_changes_only_the_weight_of_the_z_loss(tmp_path: Path):
    result = python(
        "-m", "studies.z_loss_sweep", "--coefficients", "0.1", "0", "1e-5", "--dry-run", "--out",
        str(tmp_path / "sweep"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if "train.py" in line]
    weights = ["0.0", "1e-05", "0.1"]
    assert [f"model.router_z_coefficient={w} " in line for w, line in zip(weights, lines, strict=True)] == [True] * 3
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variants", "baselin"], "--variants baselin: no such variant"),
        (["--seeds", "0"], "--seeds 0 must be 1 or greater"),
        (["training.stepz=1"], "training.stepz = 1: unknown key"),
        (["--ranks", "3"], "training.global_batch_size = 16 is not divisible"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(options: list[str], message: str, tmp_path: Path):
    result = python("-m", "studies.stability", "--out", str(tmp_path / "study"), *options)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}"), result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "study").exists()


@pytest.mark.distributed
@pytest.mark.long  # five studies of two runs under the launcher: four minutes
def test_a_study_killed_in_the_middle_gives_the_same_table(corpus: dict[str, Any], tmp_path: Path):
    whole = run(command(tmp_path, corpus, "whole", "--steps", "60"))
    assert whole.returncode == 0, whole.stderr[-3000:]
    for number in (signal.SIGKILL, signal.SIGTERM):
        start = command(tmp_path, corpus, f"killed-{number}", "--steps", "60")
        with subprocess.Popen(start, cwd=ROOT) as study:
            latest = tmp_path / f"killed-{number}" / "runs" / "baseline-0" / "checkpoints" / "latest"
            deadline = time.monotonic() + 120
            while not latest.exists():
                assert time.monotonic() < deadline and study.poll() is None
                time.sleep(0.05)
            # SIGKILL takes the whole tree, as the loss of a machine does; SIGTERM the study alone, which ends its runs
            tree = psutil.Process(study.pid).children(recursive=True)
            for process in [psutil.Process(study.pid), *(tree if number == signal.SIGKILL else [])]:
                process.send_signal(number)
            study.wait(90)
            psutil.wait_procs(tree, 30)
            assert not any(process.is_running() for process in tree)
        assert latest.read_text() != "step_00000060"
        resumed = run(start)
        assert resumed.returncode == 0, resumed.stderr[-3000:]
        for name in ("table.md", "table.json"):
            found, expected = ((tmp_path / folder / name).read_text() for folder in (f"killed-{number}", "whole"))
            assert found == expected
