"""Traces of steps: what they show, when they are written, and that they change nothing."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from model.layers.ranges import named_range
from tests.support.compare_runs import MEASURED
from tests.support.launch import rows, train
from tests.support.small import small_config
from training.config.checks import check_layout
from training.config.errors import ConfigError
from training.config.monitor import ProfileConfig
from training.engine.profiling import StepProfiler

PHASES = {"data", "forward", "backward", "optimizer"}
OF_SPARSE_LAYERS = {"router", "dispatch", "all_to_all", "experts", "combine"}


def events(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file) as trace:
        return json.load(trace)["traceEvents"]


def recorded(profiler: StepProfiler) -> list[str]:
    return sorted(file.parent.name for file in profiler.folder.glob("steps_*/rank_0.pt.trace.json.gz"))


def make(profiler: StepProfiler, *steps: int) -> None:
    for step in steps:
        with profiler.step(step), named_range("forward"):
            torch.ones(2) + 1


def losses(run_dir: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if not MEASURED.fullmatch(key)}
        for row in rows(run_dir)
        if row["split"] in ("train", "validation")
    ]


@pytest.mark.distributed
def test_a_profiled_run_shows_its_parts_and_computes_the_same(corpus: dict[str, Any], tmp_path: Path):
    config = small_config(
        tmp_path, data=corpus, parallel={"expert_parallel_size": 2},
        training={"steps": 3, "micro_batch_size": 2, "log_every": 1, "eval_examples": 16},
    )  # fmt: skip
    file, options = tmp_path / "config.yaml", tmp_path / "logged.json"
    file.write_text(yaml.safe_dump(config.model_dump()))
    options.write_text(json.dumps({"zero_optimization": {"stage": 1}, "comms_logger": {"enabled": True}}))
    plain = train(file, "training.name=plain", ranks=2)
    profiled = train(
        file, "training.name=profiled", "training.profile.steps=[2,3]", "training.profile.ranks=[1]",
        f"training.deepspeed_config={options}", ranks=2,
    )  # fmt: skip
    assert (plain.returncode, profiled.returncode) == (0, 0), profiled.stderr[-3000:]
    assert losses(tmp_path / "runs" / "plain") == losses(tmp_path / "runs" / "profiled")
    assert not (tmp_path / "runs" / "plain" / "profile").exists()

    folder = tmp_path / "runs" / "profiled" / "profile" / "steps_2-3"
    assert [found.name for found in folder.iterdir()] == ["rank_1.pt.trace.json.gz"]
    ranges = [event for event in events(folder / "rank_1.pt.trace.json.gz") if event.get("cat") == "user_annotation"]
    names = {event["name"] for event in ranges}
    assert names >= PHASES | OF_SPARSE_LAYERS | {"ProfilerStep#2", "ProfilerStep#3"}
    (step,) = (event for event in ranges if event["name"] == "ProfilerStep#2")
    within = [
        event["name"] for event in ranges if step["ts"] <= event["ts"] < step["ts"] + step["dur"] and event["pid"]
    ]
    # two micro-batches, one sparse layer in each of two stacks
    assert {name: within.count(name) for name in ("forward", "router", "combine")} == {
        "forward": 2, "router": 2 * 2, "combine": 2 * 2
    }  # fmt: skip
    # there and back, begun and awaited, forward and backward
    assert within.count("all_to_all") == 2 * 2 * 8
    assert "all_to_all_single" in profiled.stdout
    assert "Comm. Op" in profiled.stdout, "DeepSpeed's table of collectives"
    assert "all_gather_object" in profiled.stdout, "which DeepSpeed's logger does not know"
    assert "all_to_all_single" not in plain.stdout
    assert "profiler_start" not in profiled.stderr


def test_a_file_names_the_steps_that_were_made(tmp_path: Path):
    def profiler(name: str) -> StepProfiler:
        return StepProfiler(ProfileConfig(steps=[3, 5]), tmp_path / name, 0, "cpu")

    whole = profiler("whole")
    make(whole, 1, 2, 3, 4, 5, 6)
    assert recorded(whole) == ["steps_3-5"]
    resumed = profiler("resumed")
    make(resumed, 5, 6)
    assert recorded(resumed) == ["steps_5-5"]
    later = profiler("later")
    make(later, 6, 7)
    later.close()
    assert not later.folder.exists()
    stopped = profiler("stopped")
    make(stopped, 3, 4)
    stopped.close()
    assert recorded(stopped) == ["steps_3-4"]
    rolled_back = profiler("rolled back")
    make(rolled_back, 2, 3, 4, 2, 3, 4, 5)
    assert recorded(rolled_back) == ["steps_3-4", "steps_3-5"]


def test_other_ranks_record_nothing(tmp_path: Path):
    profiler = StepProfiler(ProfileConfig(steps=[1, 2], ranks=[1]), tmp_path / "profile", 0, "cpu")
    make(profiler, 1, 2)
    assert not profiler.folder.exists()


def test_a_trace_that_cannot_be_written_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("")
    profiler = StepProfiler(ProfileConfig(steps=[1, 1]), tmp_path / "file" / "profile", 0, "cpu")
    with caplog.at_level("WARNING", "st_moe"):
        make(profiler, 1, 2)
    assert "could not be written: Not a directory" in caplog.text


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ({"steps": [7, 6]}, r"training.profile.steps = \[7, 6\]: the last step is before the first; set \[6,7\]"),
        ({"steps": [0, 6]}, r"training.profile.steps = \[0, 6\]: the first step of a run is 1"),
        ({"steps": [-2, 6]}, "the first step of a run is 1"),
        ({"steps": [6]}, "give the first and the last step, such as"),
        ({"steps": [5, 9]}, r"training.profile.steps = \[5, 9\]: the run ends at training.steps = 8"),
        ({"steps": [1.5, 2]}, r"training.profile.steps = 1.5: input should be a valid integer"),
        ({"steps": 3}, "training.profile.steps = 3: "),
        ({"ranks": []}, r"training.profile.ranks = \[\]: no rank would record"),
        ({"ranks": [0, 0]}, "give each rank once"),
        ({"ranks": [-1]}, "give each rank once, from 0"),
        ({"step": [1, 2]}, "did you mean training.profile.steps"),
    ],
)
def test_windows_that_cannot_be_are_refused(tmp_path: Path, profile: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words) as found:
        small_config(tmp_path, training={"steps": 8, "profile": profile})
    assert "\n" not in str(found.value)


def test_a_rank_beyond_the_last_is_refused(tmp_path: Path):
    config = small_config(
        tmp_path, training={"steps": 8, "eval_examples": 16, "profile": {"steps": [1, 2], "ranks": [0, 2]}}
    )
    with pytest.raises(ConfigError, match=r"training.profile.ranks = \[0, 2\]: the last of 2 ranks is 1"):
        check_layout(config, 2)
