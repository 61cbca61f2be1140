"""What train.py says at its start: a user's mistake in one line with code 2, and what it is doing."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from common.project import ROOT
from tests.support.launch import python, train
from tests.support.small import small_config
from training.run.folder import RunFolder


@pytest.fixture
def config(corpus: dict[str, Any], tmp_path: Path) -> Path:
    """Of a run of one step."""
    once = {"steps": 1, "eval_every": 1, "save_every": 1, "eval_examples": 8}
    values = small_config(tmp_path, data=corpus, training=once).model_dump()
    file = tmp_path / "config.yaml"
    OmegaConf.save(OmegaConf.create(values), file)
    return file


def refused(config: Path, *arguments: str, ranks: int = 1) -> str:
    """Return the line that a run is refused with."""
    result = train(config, *arguments, ranks=ranks)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: "), line
    return line


def test_folders_that_cannot_be_written(config: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    below = refused(config, f"training.output_dir={tmp_path}/file/runs")
    assert f"training.output_dir = {tmp_path}/file/runs: {tmp_path}/file is no folder" in below
    trying = refused(config, "training.output_dir=/proc/x")  # what can be found out by trying alone
    assert "training.output_dir = /proc/x: nothing can be made in /proc (No such file or directory): set " in trying
    (tmp_path / "runs" / "small").mkdir(parents=True)
    (tmp_path / "runs" / "small" / "tensorboard").touch()
    assert "training.name = " in refused(config)
    assert sorted(path.name for path in (tmp_path / "runs" / "small").iterdir()) == ["tensorboard"]


def test_an_interrupt_before_training_is_quiet(config: Path, tmp_path: Path):
    command = [sys.executable, "train.py", "--config", str(config)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().endswith(": checking the data\n")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert not RunFolder(tmp_path / "runs" / "small").has_checkpoint()


def test_advice_does_not_contradict_a_mistake(config: Path):
    assert refused(config, "model.vocab_size=100").count("model.vocab_size") >= 2  # one line, no warning before it


def test_files_that_cannot_be_written_when_the_run_begins(config: Path, tmp_path: Path):
    (tmp_path / "runs" / "small" / "metrics.jsonl").mkdir(parents=True)
    assert f"training.output_dir = {tmp_path}/runs: Is a directory: " in refused(config, "--restart")


def test_a_mistake_is_reported_once_by_all_ranks(config: Path):
    assert "given twice" in refused(config, "--config", str(config), ranks=2)
    assert "did you mean --resume?" in refused(config, "--resum-e", ranks=2)
    assert "did you mean training.steps?" in refused(config, "training.stepz=5", ranks=2)


def test_the_stages_of_a_start_and_a_rank_given_with_a_dash(config: Path):
    """``python -m torch.distributed.launch`` passes ``--local-rank``, deepspeed ``--local_rank``."""
    result = train(config, "--local-rank=0", "model.vocab_size=300")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    stages = ["checking the data", "importing torch and DeepSpeed", "building the model", "run  ", "parameters"]
    assert [stage for stage, line in zip(stages, lines, strict=False) if stage not in line] == [], lines
    assert "warning: model.vocab_size = 300 is not a multiple of 128" in result.stderr
    assert "384" in result.stderr


def test_a_config_can_be_checked_alone(config: Path, tmp_path: Path):
    for arguments, code, words in (
        (["--check", "2"], 0, ""),
        (["--check", "3"], 2, "training.global_batch_size = 8"),
        (["--check", "2", "training.stepz=1"], 2, "did you mean training.steps?"),
    ):
        result = python("train.py", "--config", str(config), *arguments)
        assert (result.returncode, result.stdout) == (code, "")
        assert words in result.stderr
    assert not (tmp_path / "runs").exists()


def test_the_quickstart_refuses_a_misspelt_key_before_it_prepares_text():
    script = (ROOT / "launch" / "quickstart.sh").read_text(encoding="utf-8")
    assert 0 < script.index("--check 2") < script.index("data.prepare")
