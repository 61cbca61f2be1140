"""The real train.py on real files: under the real deepspeed launcher, and as forks that are its ranks."""

import glob
import json
import re
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE
from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG, parse_session_end_info_plugin_data

from tests.support.corpus import sentences
from tests.support.forks import script
from tests.support.launch import launch, rows, train
from tests.support.small import TWO_BLOCKS, small_config
from training.monitoring.columns import MEASURED

ROW_KEYS = {
    "split", "time", "step", "tokens", "loss", "cross_entropy", "load_balance_loss", "router_z_loss", "learning_rate",
    "grad_norm", "dropped_fraction", "max_router_logit", "tokens_per_second", "step_seconds", "skipped_steps",
    "update_rms/experts", "clipped_fraction/head", "perplexity", "router_entropy/encoder_1", "gradient_norm/router",
    "data_seconds", "forward_seconds", "backward_seconds", "all_to_all_seconds", "optimizer_seconds",
    "checkpoint_seconds", "model_tflops", "mfu", "peak_tflops", "capacity_padding", "memory_bytes",
    "peak_memory_bytes",
}  # fmt: skip
SUMMARY_KEYS = {
    "world_size", "expert_parallel_size", "zero_stage", "parameters_total", "parameters_active_per_token", "steps",
    "tokens", "validation_cross_entropy", "unigram_cross_entropy", "wall_seconds", "versions", "mfu_peak",
    "git_commit",
}  # fmt: skip


def write(tmp_path: Path, corpus: dict[str, Any], zero_stage: int) -> Path:
    """Write the configuration of a run whose validation text has two domains."""
    (file,) = glob.glob(corpus["validation_files"])
    (tmp_path / "other.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(40, seed=3)))
    config = small_config(
        tmp_path,
        data=corpus | {"validation_files": {"plain": file, "other": [str(tmp_path / "other.jsonl")]}},
        zero_stage=zero_stage,
        parallel={"expert_parallel_size": 2},
        optimizer={"min_dim_size_to_factor": 16},  # so that Adafactor has some of both kinds of state
        # two micro-batches per rank, dropout, jitter, sampled experts: everything that a resumed run must repeat
        model=TWO_BLOCKS | {"dropout_rate": 0.1, "router_jitter": 0.01, "second_threshold": 0.9},
        training={
            "steps": 8, "micro_batch_size": 2, "log_every": 1, "eval_every": 4, "eval_examples": 16, "save_every": 4,
        },
    )  # fmt: skip
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump()))
    return file


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What two runs must agree on: all but times, and rows of checkpoints, which appear when they are written."""
    return [
        {key: value for key, value in row.items() if not MEASURED.fullmatch(key)}
        for row in rows
        if row.get("split") != "checkpoint"
    ]


@pytest.mark.distributed
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_stopped_and_resumed_run_equals_one_never_stopped(corpus: dict[str, Any], tmp_path: Path, zero_stage: int):
    config = write(tmp_path, corpus, zero_stage)
    whole = launch(config, "training.name=whole") if zero_stage == 1 else train(config, "training.name=whole", ranks=2)
    assert whole.returncode == 0, whole.stderr[-3000:]
    # stopped after step 6, of which the checkpoint knows 4: the rest is done again
    first = train(config, "training.name=parts", "training.steps=6", ranks=2)
    assert first.returncode == 0, first.stderr[-3000:]
    parts = tmp_path / "runs" / "parts"
    (parts / "checkpoints" / "latest").write_text("step_00000004")
    second = train(config, "training.name=parts", "--resume", ranks=2)
    assert second.returncode == 0, second.stderr[-3000:]

    expected, found = rows(tmp_path / "runs" / "whole"), rows(parts)
    assert without_times(found) == without_times(expected)
    assert [row["step"] for row in found if row["split"] == "train"] == list(range(1, 9))
    if zero_stage == 1:
        _check_run_folder(tmp_path / "runs" / "whole", whole.stdout)


def _check_run_folder(run_dir: Path, output: str) -> None:
    train = [row for row in rows(run_dir) if row["split"] == "train"]
    validation = [row for row in rows(run_dir) if row.get("split") == "validation"]
    assert [row["step"] for row in validation] == [4, 8]
    for row in train:
        assert row.keys() >= ROW_KEYS
        parts = row["cross_entropy"] + sum(
            row[f"{name}_weighted"] for name in ("load_balance_loss", "router_z_loss", "output_z_loss")
        )
        assert row["loss"] == pytest.approx(parts, rel=1e-5)
        assert row["load_balance_loss_weighted"] == pytest.approx(0.01 * row["load_balance_loss"])
        assert row["router_z_loss_weighted"] == pytest.approx(0.001 * row["router_z_loss"])
    # 8 sequences of 32 + 8 positions, hardly any of them padding
    assert train[0]["tokens"] <= 8 * 40
    assert train[-1]["tokens"] > 8 * 8 * 40 * 0.9
    assert train[4]["learning_rate"] == pytest.approx(1e-2)

    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary.keys() >= SUMMARY_KEYS
    assert (summary["world_size"], summary["expert_parallel_size"], summary["zero_stage"]) == (2, 2, 1)
    assert summary["steps"] == 8
    assert summary["validation_cross_entropy"] == validation[-1]["cross_entropy"]
    domains = {name: validation[-1][f"cross_entropy/{name}"] for name in ("plain", "other")}
    assert summary["validation_cross_entropy_of"] == domains
    assert min(domains.values()) < summary["validation_cross_entropy"] < max(domains.values())
    experts = 2 * 4 * 3 * 32 * 48  # stacks x experts x matrices x d_model x d_ff
    assert summary["parameters_total"] - summary["parameters_active_per_token"] == experts // 2
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["training"]["name"] == "whole"
    assert (run_dir / "checkpoints" / "latest").read_text() == "step_00000008"

    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    scalars = [(e.step, e.value) for e in events.Scalars("train/cross_entropy")]
    assert scalars == [(row["step"], pytest.approx(row["cross_entropy"])) for row in train]
    assert [e.step for e in events.Scalars("validation/cross_entropy")] == [4, 8]
    assert [e.step for e in events.Scalars("validation/cross_entropy/other")] == [4, 8]
    # rank 0 alone speaks, in lines
    assert output.count("step 8/8") == 1
    assert output.count("step 8  validation cross-entropy") == 1


def test_activation_checkpointing_changes_no_loss(corpus: dict[str, Any], tmp_path: Path):
    config = write(tmp_path, corpus, zero_stage=2)
    losses = []
    for name, checkpointing in (("plain", "false"), ("recomputed", "true")):
        result = train(
            config, f"training.name={name}", "training.steps=4", "parallel.expert_parallel_size=1",
            f"training.activation_checkpointing={checkpointing}",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-3000:]
        losses.append([row["loss"] for row in rows(tmp_path / "runs" / name) if "loss" in row])
    assert losses[0] == losses[1]


def test_gradients_of_weights_that_are_not_finite_end_the_run(corpus: dict[str, Any], tmp_path: Path):
    config = write(tmp_path, corpus, zero_stage=1)
    # after one update of this size nothing is finite any more
    overrides = [
        "training.steps=3", "training.eval_every=9", "parallel.expert_parallel_size=1", "optimizer.learning_rate=1e30"
    ]  # fmt: skip
    lost = train(config, *overrides, "training.name=lost")
    assert lost.returncode == 3, lost.stderr[-3000:]
    assert "step 2 is not finite, 1 in a row, and no step can be: the weights are not finite; " in lost.stderr
    trained = [row for row in rows(tmp_path / "runs" / "lost") if row["split"] == "train"]
    assert [row["skipped_steps"] for row in trained] == [0, 1]
    assert ["update_rms/experts" in row for row in trained] == [True, False]
    events = EventAccumulator(str(tmp_path / "runs" / "lost" / "tensorboard")).Reload()
    end = parse_session_end_info_plugin_data(events.SummaryMetadata(SESSION_END_INFO_TAG).plugin_data.content)
    assert end.status == STATUS_FAILURE
    stopping = train(config, *overrides, "training.name=stopping", "optimizer.non_finite=stop")
    assert stopping.returncode == 3
    assert "the gradient of step 2 is not finite, and optimizer.non_finite = stop" in stopping.stderr
    assert "; not finite among gradients: decoder.blocks.0." in stopping.stderr
    assert [
        (row["step"], row.get("decision"), row.get("skipped_steps")) for row in rows(tmp_path / "runs" / "stopping")
    ] == [(1, None, 0), (2, "stop", None), (2, None, 1)]


def test_bad_lines_are_counted_reported_and_skipped(corpus: dict[str, Any], tmp_path: Path):
    import gzip

    config = write(tmp_path, corpus, zero_stage=1)
    folder = tmp_path / "train"
    folder.mkdir()
    for source in Path(corpus["train_files"]).parent.iterdir():
        text = gzip.decompress(source.read_bytes()).decode()
        (folder / source.name).write_bytes(gzip.compress(("\n{broken\n" + text).encode()))
    result = train(
        config, "training.steps=2", "parallel.expert_parallel_size=1", "training.eval_every=2",
        "training.save_every=2", f"data.train_files={folder}/*.json.gz",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    summary = json.loads((tmp_path / "runs" / "small" / "summary.json").read_text())
    assert summary["bad_rows"] == {"blank_line": 4, "malformed_json": 4}
    assert re.search(r"^skipped +data lines: 4 blank_line, 4 malformed_json$", result.stdout, re.M)


@pytest.mark.distributed
def test_a_mixture_trains_and_its_tokens_are_counted(corpus: dict[str, Any], tmp_path: Path):
    config = write(tmp_path, corpus, zero_stage=1)
    files = corpus["train_files"]
    mixture = f"[{{name: one, weight: 3, files: '{files}'}}, {{name: two, weight: 1, files: '{files}'}}]"
    result = train(config, f"data.mixture={mixture}", ranks=2)
    assert result.returncode == 0, result.stderr[-3000:]
    last = [row for row in rows(tmp_path / "runs" / "small") if row["split"] == "train"][-1]
    one, two = last["data_tokens_one"], last["data_tokens_two"]
    # 64 examples, hardly any of them the short rest of a pack, over both ranks
    assert one + two == pytest.approx(64 * 34, rel=0.1)
    assert one / (one + two) == pytest.approx(0.75, abs=0.05)
    assert last["data_rows"] == last["data_documents"] > 0
    assert last["data_bad_rows"] == last["data_retries"] == 0


def test_a_killed_data_worker_ends_the_run_with_one_line(corpus: dict[str, Any], tmp_path: Path):
    config = write(tmp_path, corpus, zero_stage=1)
    command = [
        "train.py", "--config", str(config), "training.steps=100000", "data.prefetch_batches=1",
        "parallel.expert_parallel_size=1",
    ]  # fmt: skip
    process = script(command, tmp_path / "log")
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "runs" / "small" / "metrics.jsonl").exists():
            assert time.monotonic() < deadline and process.is_alive()
            time.sleep(0.05)
        (worker,) = (p for p in psutil.Process(process.pid).children() if "data.streaming.worker" in p.cmdline())
        worker.kill()
        process.join(120)  # what the socket holds is trained on first
        assert process.exitcode == 2
    finally:
        process.kill()
    lines = (tmp_path / "log.err").read_text().splitlines()
    (error,) = (line for line in lines if line.startswith("error: "))
    assert "data worker 0 of rank 0" in error and "streams [0, 1, 2, 3], was killed by SIGKILL" in error


@pytest.mark.distributed
def test_a_mistake_is_one_line_from_one_rank_and_exit_code_2(corpus: dict[str, Any], tmp_path: Path):
    config = write(tmp_path, corpus, zero_stage=1)
    results = [launch(config, "training.stepz=1")]
    results += [train(config, mistake, ranks=2) for mistake in ("data.train_files=nowhere/*.gz", "--resume")]
    for result in results:
        assert result.returncode == 2, result.stderr[-3000:]
        own = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(own) == 1, result.stderr
        assert "Traceback" not in result.stderr + result.stdout
    assert not (tmp_path / "runs").exists()
