"""Which checkpoints are best: what is compared, what is left after a crash, a roll-back or a removal."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import write_checkpoint
from tests.support.small import small_config
from training.checkpoint.store.best import (
    Best,
    Entry,
    checkpoint_named,
    read_best,
    standing_best,
    step_named,
    values_of,
    write_best,
)
from training.checkpoint.store.publish import prune
from training.config.errors import ConfigError
from training.config.run import RunConfig

SCORES = {"a": 50.0, "b": 70.0}


def write(config: RunConfig, step: int, a: float | None, nats: float = 1.0, **changes: Any) -> None:
    """A checkpoint that was evaluated at its step."""
    scores = {"a": a, "b": 10.0}
    write_checkpoint(config, step, evaluated=[step, nats], evaluated_scores=scores, **changes)


def test_what_is_compared():
    assert values_of(None, 1.0, SCORES) == {}
    assert values_of("cross_entropy", 1.0, SCORES) == {"cross_entropy": 1.0}
    assert values_of("score", 1.0, SCORES) == {"score": 60.0}
    assert values_of("tasks", 1.0, SCORES) == {"score": 60.0, "score/a": 50.0, "score/b": 70.0}
    assert values_of("tasks", 1.0, {}) == {}


def test_a_higher_score_and_a_lower_cross_entropy_are_better_and_of_equal_ones_the_earliest():
    best = Best().adding(2, {"score": 5.0, "cross_entropy": 3.0})
    assert best.improved(4, {"score": 5.0, "cross_entropy": 3.0}) == []
    assert best.improved(4, {"score": 4.0, "cross_entropy": 2.0, "score/new": 0.0}) == ["cross_entropy", "score/new"]
    assert best.improved(4, {"score": math.nan, "score/new": math.nan}) == []
    assert best.adding(4, {"score": 6.0, "cross_entropy": 4.0}).entries == {
        "score": Entry(4, 6.0), "cross_entropy": Entry(2, 3.0)
    }  # fmt: skip
    assert best.adding(1, {"score": 5.0}).entries["score"] == Entry(1, 5.0)


def test_the_best_follow_from_the_checkpoints_alone(tmp_path: Path):
    """As after a kill between a checkpoint and the file, whatever the file says."""
    config = small_config(tmp_path)
    for step, score in ((2, 30.0), (4, 50.0), (6, None), (8, 40.0)):
        write(config, step, score, nats=1.0 / step)
    write_checkpoint(config, 10, evaluated=[8, 0.0], evaluated_scores={"a": 99.0, "b": 99.0})  # of an earlier step
    expected = {"score": Entry(4, 30.0), "score/a": Entry(4, 50.0), "score/b": Entry(2, 10.0)}
    assert standing_best(config.run_dir, "tasks", 10).entries == expected
    assert standing_best(config.run_dir, "score", 10).entries == {"score": Entry(4, 30.0)}
    assert standing_best(config.run_dir, "cross_entropy", 10).entries == {"cross_entropy": Entry(8, 0.125)}
    assert standing_best(config.run_dir, "score", 2).entries == {"score": Entry(2, 20.0)}  # later ones: rolled back
    assert standing_best(config.run_dir, None, 10) == Best()
    for content in ("", "{", "[]", '{"score": {"step": 99, "value": 99.0}}', '{"score": {"step": 8, "value": 99.0}}'):
        (config.run_dir / "best.json").write_text(content)
        assert standing_best(config.run_dir, "tasks", 10).entries == expected
    shutil.rmtree(config.run_dir / "checkpoints" / "step_00000004")  # by a user
    assert standing_best(config.run_dir, "score", 10).entries == {"score": Entry(8, 25.0)}
    (config.run_dir / "checkpoints" / "step_00000008" / "trainer_state.json").write_text("{")
    assert standing_best(config.run_dir, "score", 10).entries == {"score": Entry(2, 20.0)}


def test_a_checkpoint_that_was_evaluated_after_a_stop_stays_the_best(tmp_path: Path):
    config = small_config(tmp_path)
    write_checkpoint(config, 4)
    write_best(config.run_dir, Best({"score": Entry(4, 70.0), "cross_entropy": Entry(4, 1.0)}))
    assert standing_best(config.run_dir, "tasks", 4).entries == {"score": Entry(4, 70.0)}


def test_checkpoints_of_a_future_that_was_rolled_back_do_not_count(tmp_path: Path):
    """The run went back from 8 to 4 and has come to 12; the checkpoint of 6 was not made again."""
    config = small_config(tmp_path)
    write(config, 4, 10.0)
    write(config, 6, 90.0, guard={"rollbacks": 0})
    write(config, 12, 20.0, guard={"rollbacks": 1})
    row = {"split": "guard", "step": 8, "decision": "roll_back", "rollbacks": 1, "rolled_back_to": 4}
    (config.run_dir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert standing_best(config.run_dir, "score", 12).entries == {"score": Entry(12, 15.0)}


def test_the_file_is_strict_json_and_is_gone_when_nothing_is_best(tmp_path: Path):
    config = small_config(tmp_path)
    config.run_dir.mkdir(parents=True)
    best = Best({"score": Entry(4, 70.5), "score/a": Entry(2, 1.0)})
    write_best(config.run_dir, best)
    assert json.loads((config.run_dir / "best.json").read_text()) == {
        "score": {"step": 4, "value": 70.5, "checkpoint": "step_00000004"},
        "score/a": {"step": 2, "value": 1.0, "checkpoint": "step_00000002"},
    }
    assert read_best(config.run_dir) == best
    write_best(config.run_dir, Best())
    assert list(config.run_dir.iterdir()) == []


def test_the_best_survive_the_removal_of_old_checkpoints(tmp_path: Path):
    config = small_config(tmp_path)
    folders = [write_checkpoint(config, step) for step in (2, 4, 6, 8)]
    assert prune(folders[-1], 1, None, {2, 6}) == ["step_00000004"]
    assert prune(folders[-1], 1, None, {6}) == ["step_00000002"]


def test_the_best_are_named_by_task(tmp_path: Path):
    config = small_config(tmp_path)
    run = config.run_dir
    folder = write_checkpoint(config, 4)
    write_best(run, Best({"score": Entry(4, 70.5), "score/a": Entry(2, 1.0)}))
    assert checkpoint_named(run, "best") == checkpoint_named(run, "4") == folder
    assert step_named(run, "best:a") == 2
    with pytest.raises(ConfigError, match="has no checkpoint of step 2: name one of 4"):
        checkpoint_named(run, "best:a")  # removed by hand
    write_best(run, Best({"cross_entropy": Entry(4, 1.0)}))
    assert step_named(run, "best") == 4
    write_best(run, Best())
    with pytest.raises(
        ConfigError, match=r"checkpoint best: .* has no best.json that can be read: it was trained with"
    ):
        step_named(run, "best")
