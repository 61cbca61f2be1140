"""The tasks that a run asks at its evaluations: those of ``data.tasks``, and its own files."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.config import DataConfig
from data.sources.retry import DataError
from data.tasks.own import own_task
from tests.support.small import small_config
from tests.support.tasks import write_rows
from training.config.errors import ConfigError
from training.config.run import RunConfig, validate
from training.tasks.of_run import asked_in_training, own_tasks
from training.tasks.questions import ask, draw, task_names

ROWS = [{"inputs": f"text {n}", "targets": ("yes", "no  sir")[n % 2]} for n in range(9)]


def config_of(folder: Path, files: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    """A run on sst2 and on own files of the same nine rows."""
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    write_rows(folder, "sst2", {"test": [{"sentence": f"text {n}", "label": n % 2} for n in range(5)]})
    own = {"name": "own", "train_files": str(folder / "own.jsonl"), "validation_files": str(folder / "own.jsonl")}
    data = {"objective": "tasks", "tasks": ["sst2"], "task_files": [own | (files or {})], "task_folder": str(folder)}
    return small_config(folder, data=data | {"validation_split": "test"}, training={"eval_answers": 4} | changes)


def test_own_files_are_a_task_with_metrics():
    task = own_task("own", lambda split: [("a", "to be"), ("b", "x")], ["accuracy", "squad", "rouge", "bleu"])
    rows = task.load("validation")
    assert task.examples(rows) == [("a", "to be"), ("b", "x")]
    metrics = task.metrics([" to  be", "the Y"], rows)
    assert (metrics["accuracy"], metrics["em"], metrics["f1"], metrics["rouge1"]) == (50.0, 50.0, 50.0, 50.0)
    assert metrics.keys() == {"accuracy", "em", "f1", "rouge1", "rouge2", "rougeLsum", "bleu"}
    classes = own_task("own", lambda split: [("a", "yes"), ("b", "no  sir")], labels=["yes", "no sir"])
    rows = classes.load("train")
    assert classes.choices(rows[0]) == ("yes", "no sir")
    assert classes.metrics(["yes", "what"], rows) == {"accuracy": 50.0}
    with pytest.raises(DataError, match="task own has no split 'test': use train, validation"):
        classes.load("test")
    with pytest.raises(DataError, match="task own: the target 'no' is none of its labels yes, no sir"):
        classes.references([{"inputs": "", "targets": "no"}])


def test_a_run_asks_some_of_each_task(tmp_path: Path):
    config = config_of(tmp_path, {"labels": ["yes", "no sir"]})
    sst2, own = asked_in_training(config)
    assert (sst2.task.name, sst2.split, len(sst2.examples), sst2.is_complete) == ("sst2", "test", 4, False)
    assert (own.task.name, own.split, len(own.examples), own.has_choices) == ("own", "validation", 4, True)
    assert asked_in_training(config)[1].rows == own.rows
    assert asked_in_training(config_of(tmp_path, eval_answers=0)) == []
    every = asked_in_training(config_of(tmp_path, eval_answers=9))
    assert [one.is_complete for one in every] == [True, True]
    assert [row["inputs"] for row in every[1].rows] == [row["inputs"] for row in ROWS]
    drawn = ask(own_tasks(config.data)["own"], "validation", 4, None, seed=config.data.seed)
    assert drawn.rows == own.rows
    assert [row["inputs"] for row in ask(own.task, "validation", 4, None).rows] == [f"text {n}" for n in range(4)]
    with pytest.raises(
        DataError, match=r"training.eval_answers = 4: task own: the target 'no  sir' is none of its labels"
    ):
        asked_in_training(config_of(tmp_path, {"labels": ["yes"]}))


def test_rows_that_are_judged_together_are_drawn_together():
    assert draw([None] * 6, 3, 0) == sorted(draw([None] * 6, 3, 0))
    assert len({tuple(draw([None] * 6, 3, seed)) for seed in range(20)}) > 5
    groups = [n // 4 for n in range(20)]
    for seed in range(10):
        chosen = draw(groups, 10, seed)
        assert len(chosen) == 8 and all(sum(n // 4 == group for n in chosen) in (0, 4) for group in range(5))
    assert draw(["a"] * 5, 3, 0) == [0, 1, 2]  # larger than the limit


def test_own_tasks_are_known_by_name():
    assert task_names(["own,sst2", "validation"], ["own"]) == ["own", "sst2", "validation"]
    with pytest.raises(ConfigError, match="--tasks owns: did you mean own"):
        task_names(["owns"], ["own"])
    with pytest.raises(ConfigError, match="there is no task 'own'"):
        task_names(["own"])


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("training", {"eval_answers": 0, "keep_best": "tasks"}, "training.keep_best = tasks without training.eval_ans"),
        ("training", {"keep_best": "loss"}, "training.keep_best = 'loss'"),
        ("training", {"eval_answers": -1}, "training.eval_answers = -1"),
        ("data", {"objective": "prefix_lm", "tasks": [], "task_files": []}, "training.eval_answers = 4 with data.obj"),
        ("own", {"labels": ["a"], "metrics": ["rouge"]}, r"metrics = \[rouge\] of task own with labels"),
        ("own", {"labels": ["a", "a"]}, r"labels of task own = \[a, a\]: give each once"),
        ("own", {"metrics": ["meteor"]}, r"data.task_files\[0\].metrics"),
    ],
)
def test_impossible_settings_are_one_line(section: str, changes: dict[str, Any], words: str, tmp_path: Path):
    values = config_of(tmp_path).model_dump()
    if section == "own":
        section, changes = "data", {"task_files": [values["data"]["task_files"][0] | changes]}
    with pytest.raises(ConfigError, match=words) as error:
        validate(values | {section: values[section] | changes})
    assert "\n" not in str(error.value)


def test_the_best_by_cross_entropy_needs_no_answers(tmp_path: Path):
    assert DataConfig().objective == "span_corruption"
    assert small_config(tmp_path, training={"keep_best": "cross_entropy"}).training.keep_best == "cross_entropy"
