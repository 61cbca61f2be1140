"""What a dry run refuses in one line with code 2, before torch is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import train
from common.project import ROOT
from tests.support.launch import Completed
from tests.support.small import small_config
from training.config.run import RunConfig, load_config
from training.dry_run.checks import Cluster
from training.dry_run.run import prepare


def refused(config: RunConfig, cluster: Cluster) -> str:
    with pytest.raises(ValueError, match=r"^.") as error:
        prepare(config, cluster)
    line = str(error.value)
    assert "\n" not in line
    return line


LARGE = {"training": {"global_batch_size": 512, "micro_batch_size": 1}, "data": {"num_streams": 512}}


@pytest.mark.parametrize(
    ("sections", "cluster", "words"),
    [
        ({}, Cluster(512, 512), "--rank 512: the ranks of --world-size 512 are 0 to 511"),
        ({}, Cluster(512, -1), "--rank -1: the ranks of --world-size 512 are 0 to 511"),
        ({}, Cluster(12), "--world-size 12 is not a multiple of the 8 GPUs of a node: set --world-size 8 or 16, or"),
        ({"parallel": {"expert_parallel_size": 3}}, Cluster(8), "does not divide model.num_experts = 4"),
        (
            {"parallel": {"expert_parallel_size": 4}},
            Cluster(2),
            "does not divide --world-size 2: set --world-size to a multiple of 4, or",
        ),
        (
            {"training": {"global_batch_size": 24}},
            Cluster(16),
            "is not divisible by training.micro_batch_size x --world-size = 4 x 16",
        ),
        (
            LARGE | {"data": {"num_streams": 64}},
            Cluster(512),
            "data.num_streams = 64 is not a multiple of the 512 ranks: set data.num_streams=512",
        ),
        (
            LARGE | {"parallel": {"expert_parallel_size": 4, "expert_parallel_within_node": True}},
            Cluster(512, gpus_per_node=2),
            "does not divide the 2 ranks of a node",
        ),
        ({"model": {"capacity": "dropless"}}, Cluster(2), "model.capacity = dropless: how many rows travel"),
        ({"optimizer": {"name": "adamw_8bit"}}, Cluster(2), "optimizer.name = adamw_8bit: its kernels run on a GPU"),
        ({}, Cluster(2, card="h1000"), "--card h1000: no such card"),
    ],
)
def test_what_cannot_be_started(sections: dict[str, Any], cluster: Cluster, words: str, tmp_path: Path):
    examples = {"training": {"eval_examples": 512 * 4} | sections.get("training", {})}
    assert words in refused(small_config(tmp_path, **sections | examples), cluster)


def test_what_this_machine_lacks_is_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    elsewhere = {"vocabulary": str(tmp_path / "none")}  # whatever text this checkout has
    assert prepare(small_config(tmp_path, training={"compile": True}, data=elsewhere), Cluster(2)).plan.fits


def test_what_does_not_fit_says_what_is_missing_and_by_how_much():
    config = load_config(ROOT / "configs" / "st_moe_32b.yaml", ["training.deepspeed_config=ds_configs/zero1.json"])
    line = refused(config, Cluster(512))
    assert line.startswith("does not fit: a GPU needs ")
    small = load_config(ROOT / "configs" / "st_moe_l.yaml", [])
    assert prepare(small, Cluster(8)).plan.fits
    assert refused(small, Cluster(8, reserve=60.0)).startswith("does not fit: a GPU needs ")
    assert refused(small, Cluster(8, reserve=-1.0)).startswith("--reserve -1: GiB of h100-80gb, 0 or more")
    assert re.search(r" GiB more than .*80gb.*; try a higher ZeRO stage \(training.deepspeed_config\)", line)


def test_text_that_is_there_must_fit(corpus: dict[str, Any], tmp_path: Path):
    few = small_config(tmp_path, data=corpus | {"num_streams": 4096}, training={"eval_examples": 4096})
    assert "too few" in refused(few, Cluster(2)) or "data.num_streams" in refused(few, Cluster(2))
    small = small_config(tmp_path, data=corpus, model={"vocab_size": 128})
    assert "model.vocab_size = 128" in refused(small, Cluster(2))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "text.xyz").touch()
    unknown = small_config(tmp_path, data=corpus | {"train_files": str(tmp_path / "broken" / "*.xyz")})
    assert "text.xyz" in refused(unknown, Cluster(2))


def test_text_that_is_not_there_is_said_not_to_be(tmp_path: Path):
    config = small_config(tmp_path, data={"train_files": "/none/*.gz", "vocabulary": "/none", "num_streams": 4})
    text = prepare(config, Cluster(2, 1)).text
    assert text.streams == [1, 3]
    assert text.shards == text.counts == {}
    assert text.unread == [
        "data.vocabulary = /none has no spiece.model here",
        "train: data.train_files = '/none/*.gz' is not on this machine",
    ]


def parsed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Return the line with which a command line is refused."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", "x.yaml", *options])
    with pytest.raises(SystemExit) as end:
        train.parse_arguments()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--world-size", "8"], "--world-size goes with --dry-run"),
        (["--rank", "0"], "--rank goes with --dry-run"),
        (["--json"], "--json goes with --dry-run"),
        (["--card", "a100-40gb", "--check", "8"], "--card goes with --dry-run"),
        (["--dry-run"], "--dry-run needs --world-size N"),
        (["--dry-run", "--world-size", "0"], "error: --world-size 0: must be at least 1"),
        (["--dry-run", "--world-size", "8", "--resume"], "not allowed with argument --"),
        (["--dry-run", "--world-size", "8", "--restart"], "not allowed with argument --"),
        (["--dry-run", "--world-size", "8", "--check", "8"], "not allowed with argument --"),
        (["--dry-run", "--world-size", "8", "--world-size", "9"], "given twice"),
        (["--reserve", "3"], "--reserve goes with --dry-run"),
        (["--dry-run", "--gpus", "8"], "--gpus: with --dry-run write --world-size"),
        (["--dry-run", "--world-size", "8", "--search", "training.steps=5"], "--search: only plan.py has it"),
    ],
)
def test_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], words: str):
    assert words in parsed(monkeypatch, capsys, *options)


def test_a_launcher_and_a_mistake_end_with_code_2(tmp_path: Path):
    file = tmp_path / "config.yaml"
    OmegaConf.save(OmegaConf.create(small_config(tmp_path).model_dump()), file)

    def run(environment: dict[str, str], *options: str) -> Completed:
        command = [sys.executable, "train.py", "--config", str(file), "--dry-run", *options]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)

    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "x"}  # fmt: skip
    result = run(os.environ | launched, "--world-size", "2")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: --dry-run is one process that stands for one rank: start it with python, without a launcher\n"
    )
    result = run(dict(os.environ), "--world-size", "2", "--rank", "2")
    assert (result.returncode, result.stderr) == (2, "error: --rank 2: the ranks of --world-size 2 are 0 to 1\n")
