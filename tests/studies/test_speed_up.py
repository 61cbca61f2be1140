"""Steps to a quality, against points worked by hand, and the tables of two pairs of runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies.speed_up import Course, pairs_of, speed_up_table, steps_to_reach
from tests.support.launch import python
from training.config.run import validate
from training.run.folder import RunFolder


def test_the_step_of_a_level_lies_on_the_line_between_two_evaluations():
    curve = {100: 5.0, 200: 4.0, 300: 4.5, 400: 3.5}
    assert steps_to_reach(curve, 5.0) == 100
    assert steps_to_reach(curve, 4.25) == pytest.approx(175)  # the first time, not after step 300
    assert steps_to_reach(curve, 3.75) == pytest.approx(375)
    assert steps_to_reach(curve, 6.0) == 100
    assert steps_to_reach(curve, 3.0) is None


@given(st.lists(st.floats(1, 9), min_size=1, max_size=9), st.floats(1, 9))
def test_a_curve_was_above_the_level_at_every_evaluation_before(values: list[float], level: float):
    curve = {10 * (index + 1): value for index, value in enumerate(values)}
    step = steps_to_reach(curve, level)
    if step is None:
        assert min(values) > level
        return
    assert 10 <= step <= 10 * len(values)
    assert all(value > level for at, value in curve.items() if at < step - 1e-6)
    assert any(value <= level for at, value in curve.items() if at >= step - 1e-6)


def test_speed_up_is_the_dense_steps_over_the_sparse_ones():
    sparse = Course("sparse", 0, {100: 5.0, 200: 4.0}, 0.3)
    dense = Course("dense", 0, {100: 5.2, 300: 4.5}, 0.2)
    assert speed_up_table([(sparse, dense)]).splitlines()[-1] == "| 0 | 4.5000 | 300 | 150 | 2.00 | 1.33 |"
    behind = Course("sparse", 0, {100: 5.0, 200: 4.6}, None)
    assert speed_up_table([(behind, dense)]).splitlines()[-1] == "| 0 | 4.5000 | 300 | never, in 200 | - | - |"


def test_runs_are_paired_by_seed():
    runs = {(name, seed): Course(f"{name}-{seed}", seed, {1: 1.0}, None) for name in "sd" for seed in (0, 1)}
    ordered = pairs_of([runs["s", 1], runs["s", 0]], [runs["d", 0], runs["d", 1]])
    assert [(a.name, b.name) for a, b in ordered] == [("s-0", "d-0"), ("s-1", "d-1")]
    with pytest.raises(ValueError, match=r"--dense d-0 and d-0 both have training\.seed=0"):
        pairs_of([runs["s", 0]], [runs["d", 0], runs["d", 0]])
    with pytest.raises(ValueError, match=r"training\.seed=1 has no run on one side"):
        pairs_of([runs["s", 0], runs["s", 1]], [runs["d", 0]])


def write_run(path: Path, corpus: dict[str, Any], experts: int, curve: dict[int, float]) -> Path:
    """Write the files of a run that the program reads."""
    RunFolder(path).write_config(
        validate({"data": corpus, "model": {"num_experts": experts}, "training": {"name": path.name}})
    )
    rows = [{"split": "validation", "step": step, "cross_entropy": value} for step, value in curve.items()]
    path.joinpath("metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_two_runs_print_both_tables_and_draw_a_picture(corpus: dict[str, Any], tmp_path: Path):
    sparse = write_run(tmp_path / "sparse", corpus, 8, {0: 7.0, 100: 5.0, 200: 4.0})
    dense = write_run(tmp_path / "dense", corpus, 0, {0: 7.0, 100: 5.5, 200: 4.5, 300: 4.4})
    picture = tmp_path / "curves.png"
    done = python("-m", "studies.speed_up", "--sparse", str(sparse), "--dense", str(dense), "--picture", str(picture))
    assert done.returncode == 0, done.stderr
    assert "| 100 | 5.000 | 5.500 | +0.5000 |\n| 200 | 4.000 | 4.500 | +0.5000 |\n" in done.stdout  # steps of both
    assert "| 0 | 4.4000 | 300 | 160 | 1.88 | - |" in done.stdout
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_run_on_the_wrong_side_or_none_at_all_is_one_line(corpus: dict[str, Any], tmp_path: Path):
    sparse = write_run(tmp_path / "sparse", corpus, 8, {100: 5.0})
    untrained = write_run(tmp_path / "untrained", corpus, 0, {})
    for dense, expected in (
        (sparse, "is a sparse model: name it after --sparse"),
        (untrained, "has no evaluation yet"),
        (tmp_path / "none", "no such folder"),
        (tmp_path, "holds no run"),
    ):
        done = python("-m", "studies.speed_up", "--sparse", str(sparse), "--dense", str(dense))
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1 and expected in done.stderr
