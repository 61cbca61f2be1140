"""Pictures, examples and DeepSpeed's own monitors beside a run change none of its numbers."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.compare_runs import first_difference
from tests.support.launch import rows, train
from tests.support.small import small_config


@pytest.mark.distributed
def test_a_run_with_everything_on_equals_one_with_everything_off(corpus: dict[str, Any], tmp_path: Path):
    config = small_config(
        tmp_path,
        data=corpus,
        model={"sparse_step": 2, "dropout_rate": 0.1, "router_jitter": 0.01, "second_policy": "random"},
        parallel={"expert_parallel_size": 2},
        training={"steps": 4, "log_every": 1, "eval_every": 2, "eval_examples": 16, "save_every": 4},
    )
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump()))
    options = tmp_path / "watched.json"
    monitor = {"enabled": True, "output_path": str(tmp_path / "csv"), "job_name": "job"}
    options.write_text(json.dumps({"zero_optimization": {"stage": 1}, "csv_monitor": monitor}))
    off = ["training.name=off", "training.monitor.pictures=false", "training.monitor.examples=0"]
    for arguments in (["training.name=on", f"training.deepspeed_config={options}"], off):
        result = train(file, *arguments, ranks=2)
        assert result.returncode == 0, result.stderr[-3000:]
    on, off_dir = (tmp_path / "runs" / name for name in ("on", "off"))
    assert first_difference(on, off_dir) is None
    assert len((on / "examples.jsonl").read_text().splitlines()) == 2 * 4
    assert (off_dir / "examples.jsonl").read_text() == ""
    # samples in the place of steps, as DeepSpeed itself counts: 8 a step
    by_split = {split: [row for row in rows(on) if row["split"] == split] for split in ("train", "validation")}
    for tag, steps in (("Train/Samples/lr", [1, 2, 3, 4]), ("train/loss", [1, 2, 3, 4]), ("validation/loss", [2, 4])):
        with (tmp_path / "csv" / "job" / f"{tag.replace('/', '_')}.csv").open(newline="") as written:
            head, *values = csv.reader(written)
        assert head[0] == "step"
        assert [int(samples) for samples, _ in values] == [8 * step for step in steps], tag
        split, _, name = tag.partition("/")
        if split in by_split:
            assert [float(value) for _, value in values] == [row[name] for row in by_split[split]]
