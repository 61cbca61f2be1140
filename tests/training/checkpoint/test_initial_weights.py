"""A run that begins with the weights of another: at any layout, from a run, a checkpoint or an export."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.tokenizer import train_vocabulary
from tests.support.corpus import sentences
from tests.support.launch import python, rows, train
from tests.support.small import small_config


@pytest.fixture(scope="module")
def source(corpus: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The config file of a run of 4 steps on one process, and its folder."""
    folder = tmp_path_factory.mktemp("source")
    config = small_config(
        folder,
        data=corpus,
        # no group of tokens with more than one sequence: nothing depends on the world size
        model={"second_policy": "all", "group_size": 8},
        training={
            "steps": 4,
            "micro_batch_size": 2,
            "log_every": 1,
            "eval_every": 4,
            "eval_examples": 16,
            "save_every": 2,
        },
    )
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump()))
    result = train(file, "training.name=source", "optimizer.learning_rate=0.05")
    assert result.returncode == 0, result.stderr[-3000:]
    return file, folder / "runs" / "source"


def validations(run_dir: Path) -> dict[int, float]:
    return {row["step"]: row["cross_entropy"] for row in rows(run_dir) if row["split"] == "validation"}


@pytest.mark.distributed
def test_the_loss_before_the_first_step_is_that_of_the_source(source: tuple[Path, Path], tmp_path: Path):
    config, run_dir = source
    exported = tmp_path / "exported"
    assert python("convert.py", "export", str(run_dir), "--output", str(exported)).returncode == 0
    moved = tmp_path / "moved"
    shutil.copytree(run_dir, moved)
    zero3 = small_config(tmp_path, zero_stage=3).training.deepspeed_config
    other = [
        "optimizer.learning_rate=0.02",
        "optimizer.name=adamw",
        "training.steps=2",
        f"training.output_dir={tmp_path}",
    ]
    spread = ["parallel.expert_parallel_size=2", f"training.deepspeed_config={zero3}"]
    expected = validations(run_dir)[4]
    for name, path, ranks, options in (
        ("run", moved, 1, []),
        ("export", exported, 2, spread),
        ("checkpoint", moved / "checkpoints" / "step_00000004", 2, spread),
    ):
        result = train(config, *other, *options, f"training.init_from={path}", f"training.name={name}", ranks=ranks)
        assert result.returncode == 0, result.stderr[-3000:]
        assert f"beginning with the weights of {path}" in result.stdout
        found = validations(tmp_path / name)
        assert found[0] == pytest.approx(expected, abs=1e-5), name
        assert found[2] != found[0]
        assert json.loads((tmp_path / name / "summary.json").read_text())["init_from"] == str(path)
        first = next(row for row in rows(tmp_path / name) if row["split"] == "train")
        assert (first["step"], first["learning_rate"]) == (1, 0.02)  # a new schedule
    shutil.rmtree(moved)  # a resumed run continues with its own weights
    before = json.loads((tmp_path / "run" / "summary.json").read_text())["wall_seconds"]
    resumed = train(tmp_path / "run" / "config.yaml", "--resume", "training.steps=3")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "beginning with" not in resumed.stdout
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["wall_seconds"] > before > 0  # of both sessions
    assert sorted(validations(tmp_path / "run")) == [0, 2, 3]


def test_weights_that_do_not_fit_are_refused_in_one_line(
    source: tuple[Path, Path], corpus: dict[str, Any], tmp_path: Path
):
    config, run_dir = source
    vocabulary = tmp_path / "vocabulary"
    train_vocabulary(sentences(200, seed=9), 40, vocabulary)
    empty = tmp_path / "empty"
    empty.mkdir()
    from_source = f"training.init_from={run_dir}"
    for options, words in (
        ([from_source, "model.d_ff=64"], " has model.d_ff = 48, and this run model.d_ff = 64: set model.d_ff=48, or"),
        ([from_source, f"data.vocabulary={vocabulary}"], "was trained with another vocabulary"),
        ([f"training.init_from={empty}"], "holds neither checkpoints nor model.safetensors"),
        (["training.init_from=nowhere"], "no such folder"),
        ([from_source, "model.rms_norm_scale=false"], " there and does not exist in this model"),
    ):
        result = train(config, *options, f"training.output_dir={tmp_path}", "training.name=refused")
        assert result.returncode == 2, (options, result.stderr[-2000:])
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert line.startswith("error: training.init_from = "), line
        assert words in line
        assert "Traceback" not in result.stderr
        if "rms_norm" not in options[-1]:  # found before anything is made
            assert "importing torch" not in result.stdout and not (tmp_path / "refused").exists()
