"""Pretrained twins as the study finds them, without the minutes of training them, and a configuration for them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.streaming.identity import VOCABULARY
from data.tokenizer import Tokenizer
from studies.finetuning.sources import DENSE, SPARSE
from tests.support.checkpoints import write_checkpoint
from tests.support.small import small_config
from tests.support.tasks import small_tasks

TASKS = "sst2,wiki_topic"


@pytest.fixture(scope="module")
def twins(corpus: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a sparse and a dense run of one vocabulary, whose steps of 8 examples took half a second."""
    found, tmp_path = {}, tmp_path_factory.mktemp("twins")
    for kind, experts in ((SPARSE, 4), (DENSE, 0)):
        training = {"name": kind}
        config = small_config(tmp_path, model={"num_experts": experts}, data=corpus, training=training)
        fingerprint = Tokenizer(corpus["vocabulary"]).fingerprint
        write_checkpoint(config, step=7, data={"identity": {VOCABULARY: fingerprint}})
        step = {"split": "train", "step": 7, "step_seconds": 0.5}
        (config.run_dir / "metrics.jsonl").write_text(json.dumps(step) + "\n")
        found[kind] = config.run_dir
    return found


@pytest.fixture(scope="module")
def finetuning(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A configuration file for fine-tuning on two small tasks."""
    tmp_path = tmp_path_factory.mktemp("finetuning")
    folder = small_tasks(tmp_path / "tasks", count=16, splits=("train", "validation"))
    values = {
        "model": {"dropout_rate": 0.1, "train_capacity_factor": 2.0, "eval_capacity_factor": 2.0},
        "data": {
            "objective": "tasks", "tasks": TASKS.split(","), "task_folder": str(folder), "inputs_length": 24,
            "targets_length": 8, "num_workers": 0,
        },
        "optimizer": {"name": "adafactor", "learning_rate": 0.01, "schedule": "constant", "warmup_steps": 4},
        "training": {
            "precision": "fp32", "steps": 8, "global_batch_size": 8, "micro_batch_size": 4, "eval_examples": 8,
            "deepspeed_config": str(tmp_path / "zero1.json"), "init_optimizer": True,
        },
    }  # fmt: skip
    small_config(tmp_path)  # writes zero1.json
    file = tmp_path / "finetune.yaml"
    file.write_text(yaml.safe_dump(values))
    return str(file)
