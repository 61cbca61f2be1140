"""A run of the study from its beginning to its row: the programs that the study starts, one after another."""

import json
from pathlib import Path
from typing import Any

import pytest

from model.st_moe import StMoeForConditionalGeneration
from studies.finetuning.record import Asked, Recorder
from studies.finetuning.sources import SPARSE, pretrained
from studies.finetuning.trials import trials_of
from studies.finetuning.variants import grid_of, variants_of
from studies.results.rows import read_rows
from studies.runner.runs import make_run
from tests.support.launch import python, rows, train
from tests.support.trained import trained_run


@pytest.mark.distributed
def test_a_run_is_trained_evaluated_and_recorded(corpus: dict[str, Any], finetuning: str, tmp_path: Path):
    short = {"steps": 2, "log_every": 1, "eval_every": 2, "save_every": 2, "eval_examples": 8}
    (tmp_path / "pre").mkdir()
    source = trained_run(tmp_path / "pre", data=corpus | {"num_workers": 0}, training=short)
    model = pretrained(SPARSE, source, finetuning, ["training.steps=2"])
    assert model.flops_per_second and model.flops_per_second > 0
    variants = variants_of([model], grid_of(model.config, (), (), "examples", 1))
    folder = model.config.data.task_folder
    asked = Asked(("sst2", "wiki_topic"), "validation", 8, "generated", folder)
    (trial,), _ = trials_of({SPARSE: model}, variants, asked.identity(), 1, ["sparse_moe"])
    run = make_run(finetuning, ["training.steps=2"], trial.name, 0, tmp_path / "out", trial.overrides)
    around = {"ranks": 1, "jobs": 1, "threads": 1, "device": "a processor"}
    recorder = Recorder(asked, tmp_path / "rows.jsonl", {trial.name: trial}, finetuning, around)
    assert recorder.program(run) is None and not recorder.is_done(run)

    trained = train(Path(finetuning), *run.overrides)
    assert trained.returncode == 0, trained.stderr[-3000:]
    program = recorder.program(run)
    assert program is not None
    evaluated = python(*program)
    assert evaluated.returncode == 0, evaluated.stderr[-3000:]
    assert recorder.program(run) is None
    recorder.finish(run)
    assert recorder.is_done(run)

    (row,) = read_rows(tmp_path / "rows.jsonl")
    network = StMoeForConditionalGeneration(run.config.st_moe_config())
    moe = sum(p.numel() for name, p in network.named_parameters() if ".experts." in name or ".router." in name)
    assert row["parameters_trained"] == moe < row["parameters_total"]
    # Adafactor's second moments in fp32, since no matrix is large enough to factor, and its counter of updates
    assert row["optimizer_bytes"] == 4 * moe + 8
    validation = [one for one in rows(run.dir) if one["split"] == "validation"][-1]
    assert row["validation"]["cross_entropy"] == validation["cross_entropy"]
    assert {"cross_entropy/sst2", "cross_entropy/wiki_topic"} <= row["validation"].keys()
    for task, found in row["tasks"].items():
        answers = [json.loads(line) for line in (run.dir / "answers" / f"{task}.jsonl").read_text().splitlines()]
        right = [answer["prediction"] == answer["target"] for answer in answers]
        assert len(right) == found["examples"] == 8
        assert found["score"] == pytest.approx(100 * sum(right) / 8)
    assert row["score"] == sum(found["score"] for found in row["tasks"].values()) / 2
    assert (row["model"], row["weights"], row["status"]) == (SPARSE, model.weights, "stable")
