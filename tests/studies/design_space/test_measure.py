"""Trials take turns; what fails is named, and what was timed on a quiet machine stands."""

from pathlib import Path
from typing import Any

import pytest

from studies.design_space import measure
from studies.design_space.measure import measure_all
from studies.design_space.trials import trials_of
from studies.results.rows import read_rows
from tests.support.small import small_config
from training.config.run import RunConfig


def test_trials_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    trials, _ = trials_of(small_config(tmp_path), ["baseline", "dense", "experts_64"])
    turns: list[tuple[int, int]] = []
    load = {"date": "today", "git_commit": None, "load_average": 50.0}

    def turn(_: Any, config: RunConfig) -> dict[str, Any]:
        model = config.architecture()
        turns.append((model.num_experts, model.d_ff))
        if model.num_experts == 64:
            return {"error": "OutOfMemoryError: none is left"}
        seconds = [1.0 * len(turns), 2.0 * len(turns)]
        return {"step_seconds": seconds, "processor_seconds": [0.5, 0.4], "tokens": [10, 20], "peak_memory_bytes": 7}

    monkeypatch.setattr(measure, "_in_a_process", turn)
    monkeypatch.setattr(measure, "circumstances", lambda: dict(load))
    path = tmp_path / "rows.jsonl"
    assert measure_all(trials, "small.yaml", path, rounds=2) == 1
    sparse, dense, large = (4, 48), (0, trials[1].config.architecture().d_ff), (64, 48)
    assert turns == [sparse, dense, large, sparse, dense]
    assert "experts_64 failed: OutOfMemoryError: none is left" in capsys.readouterr().out
    rows = read_rows(path)
    assert [(row["variants"][0], row["step_seconds"], row["median_seconds"]) for row in rows] == [
        ("baseline", 1.0, 3.0), ("dense", 2.0, 4.5),
    ]  # fmt: skip
    assert (rows[0]["processor_seconds"], rows[0]["tokens_per_step"], rows[0]["peak_memory_bytes"]) == (0.4, 15.0, 7)

    load.update(date="tonight", load_average=1.0)
    assert measure_all(trials[:2], "small.yaml", path, rounds=1) == 0  # the machine was busy before
    assert measure_all(trials[:2], "small.yaml", path, rounds=1) == 0
    assert len(turns) == 7 and len(read_rows(path)) == 4
