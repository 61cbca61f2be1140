"""What the report says of a finished run, and the command that continues it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.project import ROOT
from training.report.text import describe

SUMMARY = {
    "tokens": 300_000, "world_size": 2, "expert_parallel_size": 2, "unigram_cross_entropy": 5.5, "steps": 60,
    "validation_cross_entropy": 5.0, "wall_seconds": 56.4,
}  # fmt: skip


def write(run_dir: Path, optimizer: dict[str, Any] | None = None, place: Path | None = None, **figures: Any) -> Path:
    run_dir.mkdir(parents=True)
    place = place or run_dir
    summary = {key: value for key, value in (SUMMARY | figures).items() if value != "left out"}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    training = {"output_dir": str(place.parent), "name": place.name, "steps": 60}
    (run_dir / "config.yaml").write_text(yaml.safe_dump({"training": training, "optimizer": optimizer or {}}))
    return run_dir


@pytest.mark.parametrize(
    ("figures", "lines"),
    [
        (
            {},
            (
                "Trained 60 steps on 300,000 tokens with 2 ranks",
                "size 2, in 56 s.",
                "5.000 nats per target, 0.500 below",
            ),
        ),
        (
            {"steps": 1, "world_size": 1, "validation_cross_entropy": 5.7},
            ("Trained 1 step on 300,000 tokens with 1 rank, ", "5.700 nats per target, 0.200 above the"),
        ),
        ({"wall_seconds": "left out"}, ("expert-parallel size 2.\n",)),
    ],
)
def test_figures_and_sides_of_the_baseline(tmp_path: Path, figures: dict[str, Any], lines: tuple[str, ...]):
    text = describe(write(tmp_path / "runs" / "a", **figures))
    assert [line for line in lines if line not in text] == [], text


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        ({"schedule": "rsqrt"}, "--resume training.steps=120"),
        ({"schedule": "linear", "decay_steps": 100}, "--resume training.steps=100 optimizer.decay_steps=100"),
        (
            {"schedule": "cosine", "decay_steps": None},
            "training.name=a-continued training.init_from=RUNS/a",
        ),
    ],
)
def test_the_command_that_goes_on_suits_the_schedule(tmp_path: Path, optimizer: dict[str, Any], words: str):
    runs = tmp_path / "runs"
    text = describe(write(runs / "a", optimizer))
    words = words.replace("RUNS", str(runs))
    assert f"  deepspeed --quiet --num_gpus 2 train.py --config {runs}/a/config.yaml {words}" in text.splitlines()
    assert text.endswith(f"  python convert.py export {runs}/a --output exported/a")


def test_the_command_of_a_copied_run_names_the_copy(tmp_path: Path):
    runs = tmp_path / "runs"
    text = describe(write(runs / "copy", place=runs / "a", world_size=1))
    config = f"  python train.py --config {runs}/copy/config.yaml"
    place = f"{config} training.output_dir={runs}"
    assert f"{place} training.name=copy --resume training.steps=120" in text.splitlines()
    ended = describe(write(runs / "copy2", {"schedule": "linear"}, place=runs / "a", world_size=1))
    new = f"training.output_dir={runs} training.name=copy2-continued training.init_from={runs}/copy2"
    assert f"  python train.py --config {runs}/copy2/config.yaml {new}" in ended.splitlines()


def test_a_later_checkpoint_than_the_figures_is_said(tmp_path: Path):
    run = write(tmp_path / "runs" / "a")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "latest").write_text("step_00000060")
    assert "later than these figures" not in describe(run)
    (run / "checkpoints" / "latest").write_text("step_00000061")
    assert "step_00000061/  (later than these figures" in describe(run)


def test_a_folder_that_is_no_run_is_told_from_an_unfinished_one(tmp_path: Path):
    with pytest.raises(ValueError, match=r"is no run folder, such as runs/tiny: it has no config\.yaml"):
        describe(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "summary.json does not exist: the run has not finished"),
        ("{", "summary.json cannot be read"),
        ('{"steps": 3, "tokens": 5}', "summary.json lacks world_size, expert_parallel_size, validation_cross_entropy"),
        (json.dumps(SUMMARY | {"validation_cross_entropy": None}), "lacks validation_cross_entropy: another version"),
    ],
)
def test_a_folder_without_a_finished_run_has_no_report(tmp_path: Path, content: str | None, words: str):
    (tmp_path / "config.yaml").write_text("{}")
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        describe(tmp_path)


def test_a_closed_pipe_is_no_error(tmp_path: Path):
    run_dir = write(tmp_path / "runs" / "a")
    command = f"sleep 1.5 | {sys.executable} -m training.report {run_dir} | true"  # the reader is gone at once
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_missing_run_is_one_line_that_names_the_command():
    result = subprocess.run(
        [sys.executable, "-m", "training.report"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith("see python -m training.report --help\n")
    assert result.stderr.count("\n") == 1
