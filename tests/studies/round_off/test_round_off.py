"""The study as a user starts it; its runs are trained by forks of ``train.py`` in place of the launcher."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from studies.round_off.plan import Start
from studies.runner.launcher import train_arguments
from studies.runner.runs import make_run
from tests.support.launch import python, train
from tests.support.small import small_config

STEPS = 3


def test_runs_and_measurements_end_in_a_page_and_are_not_repeated(corpus: dict[str, Any], tmp_path: Path) -> None:
    config = small_config(
        tmp_path, model={"num_layers": 2, "sparse_step": 2}, data=corpus, training={"eval_examples": 8}
    )
    file, out = tmp_path / "small.yaml", tmp_path / "study"
    file.write_text(yaml.safe_dump(config.model_dump()))
    common = [f"training.steps={STEPS}", "optimizer.decay_steps=null"]
    for z_loss in (False, True):
        start = Start(1.0, z_loss)
        run = make_run(str(file), common, start.name, 0, out, start.overrides)
        trained = train(file, *train_arguments(run, resume=False)[2:])
        assert trained.returncode == 0, trained.stderr[-3000:]
    command = [
        "-m", "studies.round_off", "--config", str(file), "--out", str(out), "--steps", str(STEPS), "--factors", "1",
        "--fp32-factors", "--seeds", "1", "--tokens", "40",
    ]  # fmt: skip
    first = python(*command)
    assert first.returncode == 0, first.stderr[-3000:]
    assert "already finished: 2 of 2 runs" in first.stdout
    assert {"report.md", "round_off.png", "recovery.png"} <= {path.name for path in out.iterdir()}

    rows = [json.loads(line)["row"] for line in (out / "rows.jsonl").read_text().splitlines()]
    assert [row["variant"] for row in rows] == ["x1", "x1_z_loss"]
    for row in rows:
        summary = json.loads((out / "runs" / f"{row['variant']}-0" / "summary.json").read_text())
        assert row["cross_entropy"] == summary["validation_cross_entropy"]
    assert rows[1]["router_z_loss"] < rows[0]["router_z_loss"]

    lines = (out / "measurements.jsonl").read_text()
    _, *of_runs = (json.loads(line) for line in lines.splitlines())
    assert len(of_runs) == 2
    for entry in of_runs:
        values = {(r["factor"], r["precision"]): r["cross_entropy"] for r in entry["rows"] if "cross_entropy" in r}
        assert len(values) == 8
        for (_, precision), value in values.items():
            assert value == pytest.approx(values[1, "fp32"], abs=0.2), precision
        assert values[1, "everything"] != values[1, "fp32"]
        assert {row["layer"] for row in entry["rows"] if "layer" in row} == {"encoder_1", "decoder_1"}

    page = (out / "report.md").read_text()
    again = python(*command)
    assert again.returncode == 0, again.stderr[-3000:]
    assert (out / "report.md").read_text() == page
    assert (out / "measurements.jsonl").read_text() == lines

    # The rows alone keep the runs: nothing is trained where their folders are not.
    elsewhere = [*command, "--rows", str(out / "rows.jsonl"), "--out", str(tmp_path / "elsewhere"), "--dry-run"]
    assert python(*elsewhere).stdout.strip() == ""
    other = python(*elsewhere, "training.global_batch_size=4")
    assert other.returncode == 2
    assert "holds runs of other settings" in other.stderr


def test_dry_run_prints_each_start_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "study"
    result = python("-m", "studies.round_off", "--factors", "100", "1", "--seeds", "2", "--dry-run", "--out", str(out))
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if "train.py" in line]
    settings = [
        "model.router_initializer_factor=1.0 model.router_z_coefficient=0.0 model.router_precision=bf16",
        "model.router_initializer_factor=1.0 model.router_z_coefficient=0.001 model.router_precision=bf16",
        "model.router_initializer_factor=100.0 model.router_z_coefficient=0.0 model.router_precision=bf16",
        "model.router_initializer_factor=100.0 model.router_z_coefficient=0.001 model.router_precision=bf16",
        "model.router_initializer_factor=100.0 model.router_z_coefficient=0.0 model.router_precision=fp32",
    ]
    assert len(lines) == 2 * len(settings)
    assert all(text in line for text, line in zip(settings * 2, lines, strict=True))
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--factors", "10", "100"], "--factors 10 100: add 1"),
        (["--factors", "1", "-3"], "--factors -3 must be greater than 0"),
        (["--fp32-factors", "nan"], "--fp32-factors nan must be greater than 0"),
        (["--tokens", "0"], "--tokens 0 must be 1 or greater"),
        (["--trained", "configs"], "configs is no run, since it has no checkpoints/: name a run folder"),
        (["--trained", "configs", "training.steps=3"], "training.steps=3 follows --trained"),
        (["model.num_experts=0"], "model.num_experts = 0: the study is of routers"),
        (["model.feed_forward=relu"], "the study reads experts with model.feed_forward = geglu"),
        (["model.router_initializer_factor=0"], "model.router_initializer_factor = 0 must be greater than 0"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(options: list[str], message: str, tmp_path: Path) -> None:
    result = python("-m", "studies.round_off", "--out", str(tmp_path / "study"), *options)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}"), result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "study").exists()
