"""A fine-tuning run scores its tasks' answers at each evaluation, and keeps its best checkpoints."""

import json
import os
import re
import runpy
import signal
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import deepspeed
import deepspeed.comm as dist
import pytest
import torch
import yaml

from data.tokenizer import Tokenizer
from tests.support.corpus import WORDS
from tests.support.forks import TIMEOUT_SECONDS, fork
from tests.support.launch import python, rows, train
from tests.support.ranks import run_ranks
from tests.support.small import global_batch, small_config
from training.checkpoint.initial.source import look_into
from training.checkpoint.store.state import read_folder
from training.config.errors import ConfigError
from training.config.run import RunConfig
from training.engine.build import build_engine
from training.engine.step import update
from training.export.export import export
from training.export.trained import find_trained
from training.report.history import read_history
from training.report.page import to_html
from training.report.text import describe
from training.tasks.answers import Decoding
from training.tasks.measure import TaskAnswers
from training.tasks.of_run import asked_in_training

LABELS = list(WORDS[:3])


def tasks(folder: Path) -> list[dict[str, Any]]:
    """Own tasks: the class that a text names, and its other word."""
    folder.mkdir(exist_ok=True)
    found = []
    for name, more in (("kind", {"labels": LABELS}), ("second", {"metrics": ["squad", "rouge"]})):
        for split, size in (("train", 48), ("validation", 10)):
            words = [(LABELS[n % 3], WORDS[(n * 7 + 3) % 36]) for n in range(size)]
            lines = [
                {"inputs": " ".join([name, a, b] * (1 + n % 3)), "targets": a if name == "kind" else b}
                for n, (a, b) in enumerate(words)
            ]
            (folder / f"{name}.{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        files = {f"{split}_files": str(folder / f"{name}.{split}.jsonl") for split in ("train", "validation")}
        found.append({"name": name, **files, **more})
    return found


def config_of(folder: Path, corpus: dict[str, Any], **changes: Any) -> RunConfig:
    """A run on those tasks."""
    data = {"objective": "tasks", "task_files": tasks(folder / "tasks"), "vocabulary": corpus["vocabulary"],
            "inputs_length": 24, "targets_length": 8, "num_streams": 4}  # fmt: skip
    model = {"num_layers": 2, "num_decoder_layers": 2, "sparse_step": 2}
    training = {"steps": 16, "log_every": 1, "eval_every": 4, "eval_examples": 8, "eval_answers": 8, "save_every": 6,
                "eval_answers_by": "likeliest", "keep_checkpoints": 1, "keep_best": "tasks"}  # fmt: skip
    return small_config(
        folder, data=data | changes.pop("data", {}), model=model | changes.pop("model", {}),
        training=training | changes.pop("training", {}),
        optimizer={"learning_rate": 0.03, "warmup_steps": 1}, **changes,
    )  # fmt: skip


def digest(references: Any, predictions: Any, groups: Any) -> dict[str, float]:
    """A metric that tells any two lists of texts apart, right or wrong."""
    return {"digest": float(zlib.crc32("|".join(predictions).encode())), "texts": float(len(set(predictions)))}


def _scores(folder: str, corpus: dict[str, Any], layouts: list[tuple[int, int]]) -> list[Any]:
    """The columns of each layout (ZeRO stage, expert-parallel size) before each of two steps.

    Under ZeRO 3, which follows the order in which modules are called, also that the weights after these steps are those
    of steps without answers between them.
    """
    found = []
    for stage, size in layouts:
        place = Path(folder) / f"{stage}-{size}-{dist.get_rank()}"
        place.mkdir()
        # Weights so large that the inputs decide what is written.
        model = {"capacity": "dropless", "second_policy": "all", "initializer_scale": 4.0}
        config = config_of(place, corpus, model=model, zero_stage=stage, parallel={"expert_parallel_size": size},
                           training={"eval_answers": 5})  # fmt: skip
        asked = [replace(one, task=replace(one.task, metric_functions=(digest,))) for one in asked_in_training(config)]
        asked[0] = replace(asked[0], task=replace(asked[0].task, answers=asked[1].task.answers))  # read as texts
        measure = TaskAnswers(asked, Tokenizer(corpus["vocabulary"]), 24, Decoding(4, batch_size=2), "generated")
        sums = []
        for answers in (True, False) if stage == 3 else (True,):
            engine = build_engine(config, dist.get_world_size(), "cpu")
            columns = []
            for step in range(2):
                columns += [measure(engine)] if answers else []
                own = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
                update(engine, [{k: v[own] for k, v in global_batch(step, 8).items()}], 0, 0, step, dist.get_rank())
            for parameter in engine.module.parameters() if stage == 3 else ():
                with deepspeed.zero.GatheredParameters([parameter]):
                    sums.append(float(parameter.detach().double().abs().sum()))
            found += [columns] if answers else []
        assert sums[: len(sums) // 2] == sums[len(sums) // 2 :]
    return found


@pytest.mark.distributed
def test_the_answers_are_the_same_at_any_layout_and_change_nothing(corpus: dict[str, Any], tmp_path: Path):
    first, second = run_ranks(_scores, 2, tmp_path, str(tmp_path), corpus, [(1, 1), (2, 2), (3, 2)])
    assert first == second
    assert first[1:] == first[:1] * 2
    before, after = first[0]
    assert before["texts/second"] > 2 and before["digest/second"] != after["digest/second"]


def _train_and_die(file: str) -> None:
    """Train until a checkpoint is published that is the best, and be killed before ``best.json`` says so."""

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    sys.argv = ["train.py", "--config", file]
    with patch("training.checkpoint.saver.write_best", die):
        runpy.run_path("train.py", run_name="__main__")


@pytest.fixture(scope="module")
def finetuned(corpus: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed between its first best checkpoint and the file that names it, and resumed."""
    folder = tmp_path_factory.mktemp("finetuned")
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config_of(folder, corpus).model_dump()))
    killed = fork(_train_and_die, str(file))
    killed.join(TIMEOUT_SECONDS)
    run = folder / "runs" / "small"
    assert killed.exitcode == -signal.SIGKILL
    assert not (run / "best.json").exists() and (run / "checkpoints" / "step_00000004").is_dir()
    result = train(file, "--resume")
    assert result.returncode == 0, result.stderr[-3000:]
    (folder / "log").write_text(result.stdout)
    return run


def test_a_run_keeps_its_best_checkpoints(finetuned: Path):
    """Evaluations of steps 4, 8, 12 and 16, checkpoints of 6 and 12 and of the last step; one newest is kept."""
    evaluated = {row["step"]: row for row in rows(finetuned) if row["split"] == "validation"}
    assert list(evaluated) == [4, 8, 12, 16]
    for row in evaluated.values():
        assert row["score/kind"] == row["accuracy/kind"]
        of_second = [row[f"{name}/second"] for name in ("em", "f1", "rouge1", "rouge2", "rougeLsum")]
        assert row["score/second"] == pytest.approx(sum(of_second) / 5)
        assert row["score"] == pytest.approx((row["score/kind"] + row["score/second"]) / 2)
    assert len({row["score"] for row in evaluated.values()}) > 1
    best = json.loads((finetuned / "best.json").read_text())
    assert best.keys() == {"score", "score/kind", "score/second"}
    for name, entry in best.items():
        highest = max(row[name] for row in evaluated.values())
        first = min(step for step, row in evaluated.items() if row[name] == highest)
        assert entry == {"step": first, "value": highest, "checkpoint": f"step_{first:08d}"}
    kept = {path.name for path in (finetuned / "checkpoints").glob("step_*")}
    assert kept == {entry["checkpoint"] for entry in best.values()} | {"step_00000016"}
    log = (finetuned.parent.parent / "log").read_text()
    last = evaluated[16]
    scores = f"kind {last['score/kind']:.1f}, second {last['score/second']:.1f}"
    assert f"; score {last['score']:.1f} ({scores})" in log
    assert re.search(rf"^best +score {best['score']['value']:.4g} \(step {best['score']['step']}\)", log, re.MULTILINE)
    text = describe(finetuned)
    assert f"Scores of the answers, %: {scores}." in text
    assert f"Best checkpoints: score {best['score']['value']:.4g} at step {best['score']['step']}" in text
    page = to_html([read_history(finetuned)])
    assert "score of second, %" in page and "Mean score of all tasks, %" in page


def test_evaluating_the_best_checkpoint_gives_the_runs_own_scores(finetuned: Path, tmp_path: Path):
    best = json.loads((finetuned / "best.json").read_text())
    options = ("--checkpoint", "best:second", "--limit", "8", "--draw", "0", "--routing", "trained")
    done = python("evaluate.py", str(finetuned), "--tasks", "kind,second", *options, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "results.json").read_text())
    step = best["score/second"]["step"]
    assert found["step"] == step
    (row,) = (row for row in rows(finetuned) if (row["split"], row["step"]) == ("validation", step))
    kind, second = found["results"]["kind"], found["results"]["second"]
    assert kind["examples"] == second["examples"] == 8
    assert kind["likeliest"] == {"accuracy": pytest.approx(row["accuracy/kind"])}
    assert second["generated"] == {name: pytest.approx(row[f"{name}/second"]) for name in second["generated"]}
    assert second["score"] == pytest.approx(row["score/second"])
    asked = [json.loads(line)["inputs"] for line in (tmp_path / "kind.jsonl").read_text().splitlines()]
    assert len(set(asked)) == 8


def test_the_best_checkpoint_is_named_wherever_one_is(finetuned: Path, tmp_path: Path):
    entry = json.loads((finetuned / "best.json").read_text())["score"]
    folder = finetuned / "checkpoints" / entry["checkpoint"]
    assert find_trained(finetuned, "best").source.folder == folder
    assert find_trained(finetuned / "checkpoints" / "best").source.folder == folder
    assert look_into(finetuned / "checkpoints" / "best", "training.init_from").folder == folder
    assert export(finetuned, tmp_path / "exported", torch.float32, step="best")[0] == folder
    assert (
        f"score of task kind, % | {entry_of(folder, 'kind'):.1f}" in (tmp_path / "exported" / "README.md").read_text()
    )
    for name, words in (
        ("best:third", "keeps no best checkpoint of third: it has best, best:kind, best:second"),
        ("7", "has no checkpoint of step 7: name one of "),
        ("last", "name a step, best, or best:TASK"),
        ("best:", "name a step, best, or best:TASK"),
    ):
        with pytest.raises(ConfigError, match=words) as error:
            find_trained(finetuned, name)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"training.init_from = x: checkpoint best:no: .* keeps no best"):
        look_into(finetuned / "checkpoints" / "best:no", "training.init_from = x")


def entry_of(checkpoint: Path, task: str) -> float:
    """The score of a task in the state of a checkpoint."""
    return read_folder(checkpoint).state.scores[task]
