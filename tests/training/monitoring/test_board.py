"""What TensorBoard shows of a real run, asked from the real server: all of it, each step once, whatever happened."""

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.support.forks import script
from tests.support.launch import rows
from tests.support.ranks import rank_environments
from tests.support.small import small_config
from tests.support.tensorboard_server import Server, tensorboard
from training.monitoring.columns import GUARD, ROUTING, SPLIT, STEP, TIME, TRAIN
from training.monitoring.standing import standing_rows
from training.monitoring.tensorboard.hparams import METRICS
from training.monitoring.tensorboard.layout import LAYOUT

RUN = "small/tensorboard"
STEPS, EVERY = 35, 5
ENDED = 200.0  # seconds that a run may take


def start(config: Path, log: Path, *arguments: str) -> list[Any]:
    """Two ranks whose data of the batches 21 and 22 is bad, so that the guard rolls back."""
    command = ["-m", "tests.support.faulty_train", "spike:21:23", "--config", str(config), *arguments]
    return [script(command, log, environment) for environment in rank_environments(2)]


def finish(processes: list[Any], log: Path) -> None:
    for process in processes:
        process.join(ENDED)
    codes = [process.exitcode for process in processes]
    assert codes == [0, 0], log.with_suffix(".err").read_text()[-3000:]


def kill_at(processes: list[Any], metrics: Path, step: int) -> None:
    """SIGKILL to all ranks when the row of ``step`` is written after a roll-back."""
    deadline = time.monotonic() + ENDED
    while True:
        text = metrics.read_text() if metrics.exists() else ""
        found = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        back = [number for number, row in enumerate(found) if row.get("decision") == "roll_back"]
        if back and any(row[STEP] >= step and row[SPLIT] == TRAIN for row in found[back[0] :]):
            break
        assert time.monotonic() < deadline and all(process.is_alive() for process in processes)
        time.sleep(0.02)
    for process in processes:
        process.kill()
        process.join()


@pytest.fixture(scope="module")
def run_dir(corpus: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that was rolled back, then killed some steps after a checkpoint, then resumed to its end."""
    folder = tmp_path_factory.mktemp("board")
    config = small_config(
        folder,
        data=corpus,
        model={"sparse_step": 2},
        parallel={"expert_parallel_size": 2},
        guard={"spike_threshold": 3.0, "spike_window": 8, "spike_steps": 2, "spike_margin": 1},
        training={
            "steps": STEPS, "log_every": 1, "eval_every": EVERY, "eval_examples": 16, "save_every": EVERY,
        },
    )  # fmt: skip
    file, log = folder / "config.yaml", folder / "log"
    file.write_text(yaml.safe_dump(config.model_dump()))
    kill_at(start(file, log), config.run_dir / "metrics.jsonl", 28)
    finish(start(file, log, "--resume"), log)
    return config.run_dir


@pytest.fixture(scope="module")
def server(run_dir: Path) -> Any:
    with tensorboard(run_dir.parent) as server:
        yield server


def expected_points(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """By tag, the points of the rows that stand."""
    points: dict[str, list[tuple[int, float]]] = {}
    for row in standing_rows(run_dir / "metrics.jsonl"):
        for name, value in row.items():
            if name not in (STEP, TIME) and isinstance(value, int | float):
                points.setdefault(f"{row[SPLIT]}/{name}", []).append((row[STEP], value))
                if name in ("cross_entropy", "loss"):
                    points.setdefault(f"tokens/{row[SPLIT]}/{name}", []).append((row["tokens"], value))
    return points


@pytest.mark.distributed
def test_each_point_of_each_column_is_there_once_after_a_roll_back_a_kill_and_a_resume(server: Server, run_dir: Path):
    written = rows(run_dir)
    guard = [row for row in written if row[SPLIT] == GUARD]
    assert "roll_back" in [row["decision"] for row in guard], "the run must have rolled back"
    assert [row[STEP] for row in written if row[SPLIT] == TRAIN] != list(range(1, STEPS + 1)), "as the rows tell"
    shown, expected = server.scalars(RUN), expected_points(run_dir)
    assert shown.keys() == expected.keys()
    for tag, points in expected.items():
        assert [step for step, _ in shown[tag]] == [step for step, _ in points], tag
        assert [value for _, value in shown[tag]] == pytest.approx([value for _, value in points], nan_ok=True), tag
    assert [step for step, _ in shown["train/loss"]] == list(range(1, STEPS + 1))
    assert [step for step, _ in shown["validation/cross_entropy"]] == list(range(EVERY, STEPS + 1, EVERY))
    checkpoints = [step for step, _ in shown["checkpoint/save_seconds"]]
    assert checkpoints == sorted(set(checkpoints)), "the kill may come before the row of the last one"
    assert [step for step, _ in shown["guard/rollbacks"]] == [row[STEP] for row in guard]
    assert list(server.get("scalars/tags")) == [RUN], "one run in TensorBoard for one run"
    assert sum(file.stat().st_size > 0 for file in (run_dir / "tensorboard").iterdir()) == 1


@pytest.mark.distributed
def test_examples_are_text_with_the_experts_of_each_piece(server: Server, run_dir: Path):
    steps = server.steps("text", RUN)
    examples = {tag: of for tag, of in steps.items() if tag.startswith("examples/")}
    assert examples == {f"examples/{n}": list(range(EVERY, STEPS + 1, EVERY)) for n in range(4)}
    guard = [row for row in rows(run_dir) if row[SPLIT] == GUARD]
    assert steps["guard/decision"] == steps["guard/reason"] == [row[STEP] for row in guard]
    assert steps["guard/history"] == [n + 1 for n in range(len(guard))]
    history = server.get("text/text", run=RUN, tag="guard/history")[-1]["text"]
    assert [history.count(f"<td>{row['decision']}</td>") > 0 for row in guard] == [True] * len(guard)
    lines = [json.loads(line) for line in (run_dir / "examples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["example"]) for line in lines] == [
        (step, n) for step in range(EVERY, STEPS + 1, EVERY) for n in range(4)
    ]
    for line in lines:
        assert line["input"].count("<extra_id_") == line["target"].count("<extra_id_") > 0
        assert line["experts"].keys() == {"encoder_1", "encoder_3", "decoder_1", "decoder_3"}
        for layer, of_pieces in line["experts"].items():
            assert len(of_pieces) == len(line["pieces"][layer.partition("_")[0]])
            assert {expert for experts in of_pieces for expert in experts} <= set(range(4))
            assert any(of_pieces)
    assert lines[0]["input"] == lines[4]["input"], "the same examples each time"
    assert lines[0]["prediction"] != lines[-4]["prediction"]
    html = server.get("text/text", run=RUN, tag="examples/0")[-1]["text"]
    assert "&lt;extra_id_0&gt;" in html
    assert "<table>" in html


@pytest.mark.distributed
def test_pictures_of_routing_are_there_for_each_evaluation(server: Server, run_dir: Path):
    evaluations, layers = list(range(EVERY, STEPS + 1, EVERY)), ("encoder_1", "encoder_3", "decoder_1", "decoder_3")
    assert server.steps("images", RUN) == {"routing/load": evaluations}
    assert server.steps("histograms", RUN) == {f"routing/probabilities/{layer}": evaluations for layer in layers}
    entry = server.get("images/images", run=RUN, tag="routing/load", sample="0")[-1]
    picture = Image.open(io.BytesIO(server.raw(f"plugin/images/individualImage?{entry['query']}")))
    assert picture.format == "PNG"
    assert len(picture.convert("RGB").getcolors(1 << 16) or []) > 20, "cells of many loads, a scale and texts"
    last = [row for row in standing_rows(run_dir / "metrics.jsonl") if row[SPLIT] == ROUTING][-1]
    _, _, bins = server.get("histograms/histograms", run=RUN, tag="routing/probabilities/encoder_1")[-1]
    assert sum(count for _, _, count in bins) == pytest.approx(sum(last["probabilities/encoder_1"]))


@pytest.mark.distributed
def test_the_first_page_and_the_hyperparameters(server: Server, run_dir: Path):
    layout = server.get("custom_scalars/layout")
    assert [category["title"] for category in layout["category"]] == list(LAYOUT)
    assert layout["category"][0]["title"] == "Health of the run"
    chart = next(chart for chart in layout["category"][0]["chart"] if chart["title"] == "cross-entropy")
    drawn = [
        tag
        for pattern in chart["multiline"]["tag"]
        for tag in server.get("custom_scalars/scalars", run=RUN, tag=pattern)["tag_to_events"]
    ]
    assert drawn == ["train/cross_entropy", "validation/cross_entropy"], "validation over training, and nothing else"
    statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    request = {"startIndex": 0, "sliceSize": 10, "allowedStatuses": statuses, "colParams": []}
    (group,) = server.get("hparams/session_groups", request)["sessionGroups"]
    (session,) = group["sessions"]
    assert session["status"] == "STATUS_SUCCESS"
    assert group["hparams"]["model.num_experts"] == 4
    assert group["hparams"]["optimizer.name"] == "adafactor"
    last = {tag: points[-1][1] for tag, points in expected_points(run_dir).items()}
    metrics = {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}
    assert metrics == pytest.approx({tag: last[tag] for tag in METRICS if tag in last})
    assert "validation/cross_entropy" in metrics
