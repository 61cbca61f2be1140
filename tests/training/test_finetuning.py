"""Fine-tuning from a pretraining run: two tasks, frozen attention and norms, stopped and resumed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from data.config import DataConfig
from data.objectives.text_to_text import TextToText
from data.tokenizer import Tokenizer
from model.config import StMoeConfig
from model.losses import IGNORED_LABEL
from model.moe.layer import SparseFeedForward
from model.moe.routing import Routing
from model.st_moe import StMoeForConditionalGeneration
from tests.support.compare_runs import first_difference
from tests.support.corpus import WORDS
from tests.support.launch import rows, train
from tests.support.small import SMALL_MODEL, small_config
from training.checkpoint.store.index import WEIGHT, TensorReader
from training.monitoring.columns import undeclared

MODEL = {"num_layers": 2, "num_decoder_layers": 2, "sparse_step": 2, "second_policy": "all"}


def write_task(folder: Path, name: str, sizes: dict[str, int]) -> dict[str, str]:
    """A task whose answer is the word after the first of its inputs; the entry of ``data.task_files``."""
    folder.mkdir(exist_ok=True)
    for split, size in sizes.items():
        words = [(WORDS[i % 36], WORDS[(i * 5 + len(name)) % 36]) for i in range(size)]
        examples = [{"inputs": f"{name} {a} {b}", "targets": b} for a, b in words]
        (folder / f"{name}.{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in examples))
    return {"name": name} | {f"{split}_files": str(folder / f"{name}.{split}.jsonl") for split in sizes}


def test_the_padding_of_a_batch_is_routed_nowhere(corpus: dict[str, Any]):
    tokenizer = Tokenizer(corpus["vocabulary"])
    data = DataConfig(inputs_length=24, targets_length=8, vocabulary=corpus["vocabulary"])
    encoder = TextToText(data, tokenizer)
    pairs = [encoder.encode(" ".join(WORDS[:n]), WORDS[n]) for n in (1, 3)] + [encoder.nothing()]
    batch = {
        "input_ids": torch.tensor(np.stack([pair.inputs_L for pair in pairs])).long(),
        "labels": torch.tensor(np.stack([pair.labels_T for pair in pairs])).long(),
    }
    model = StMoeForConditionalGeneration(StMoeConfig(**SMALL_MODEL | MODEL)).train()
    routings: list[Routing] = []
    for module in model.modules():
        if isinstance(module, SparseFeedForward):
            module.observer = lambda routing, _logits: routings.append(routing)
    output = model(**batch)
    real = (batch["input_ids"] != tokenizer.pad_id, batch["labels"] != IGNORED_LABEL)
    assert len(routings) == 2
    for routing, real_BP in zip(routings, real, strict=True):
        served = routing.kept_NGS.any(0).flatten()
        assert int(routing.real_tokens) == int(real_BP.sum()) < real_BP.numel()
        assert served[real_BP.flatten()].any()
        assert not served[~real_BP.flatten()].any()
    assert torch.isfinite(output.loss)
    assert torch.isfinite(output.logits).all()  # of the row of padding alone, too


@pytest.mark.distributed
def test_a_run_from_pretrained_weights_stops_resumes_and_keeps_frozen_ones(corpus: dict[str, Any], tmp_path: Path):
    pretraining = small_config(tmp_path, data=corpus, model=MODEL, training={"name": "pre", "steps": 2, "eval_every": 2,
                               "eval_examples": 8, "save_every": 2})  # fmt: skip
    (tmp_path / "pre.yaml").write_text(yaml.safe_dump(pretraining.model_dump()))
    assert train(tmp_path / "pre.yaml", "parallel.expert_parallel_size=2", ranks=2).returncode == 0
    own = [
        write_task(tmp_path / "tasks", "one", {"train": 30, "validation": 5}),
        write_task(tmp_path / "tasks", "two", {"train": 11, "validation": 12}),
    ]
    training = {"name": "fine", "output_dir": str(tmp_path / "runs"), "init_from": str(pretraining.run_dir), "steps": 4,
                "init_optimizer": True, "trainable": "dense_feed_forward", "precision": "fp32", "global_batch_size": 8,
                "micro_batch_size": 4, "log_every": 1, "eval_every": 2, "eval_examples": 8, "save_every": 2,
                "deepspeed_config": pretraining.training.deepspeed_config}  # fmt: skip
    values = {
        "model": {"dropout_rate": 0.1, "expert_dropout_rate": 0.4},
        "data": {"objective": "tasks", "task_files": own, "inputs_length": 24, "targets_length": 8, "num_streams": 4},
        "optimizer": {"schedule": "constant", "warmup": "linear", "warmup_steps": 3, "learning_rate": 0.01},
        "training": training,
    }
    (tmp_path / "fine.yaml").write_text(yaml.safe_dump(values))
    whole = train(tmp_path / "fine.yaml", "training.name=whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert "beginning with the weights and the optimizer's state of" in whole.stdout
    assert "dense_feed_forward" in whole.stdout
    stopped = train(tmp_path / "fine.yaml", "training.steps=2")
    assert stopped.returncode == 0, stopped.stderr[-3000:]
    resumed = train(tmp_path / "fine.yaml", "--resume")
    assert resumed.returncode == 0, resumed.stderr[-3000:]

    a, b = (tmp_path / "runs" / name for name in ("whole", "fine"))
    assert first_difference(a, b) is None
    for run in (a, b):
        found = [row for row in rows(run) if row["split"] == "validation"]
        assert [row["step"] for row in found] == [0, 2, 4]
        for row in found:
            assert not undeclared(row)
            of_tasks = row["cross_entropy/one"], row["cross_entropy/two"]
            assert min(of_tasks) < row["cross_entropy"] < max(of_tasks)
    saved = yaml.safe_load((a / "config.yaml").read_text())
    assert (saved["model"]["num_experts"], saved["model"]["dropout_rate"]) == (4, 0.1)
    assert saved["data"]["vocabulary"] == str(pretraining.run_dir / "vocabulary")
    before = TensorReader(pretraining.run_dir / "checkpoints" / "step_00000002")
    after = TensorReader(a / "checkpoints" / "step_00000004")
    assert before.index.parameters.keys() == after.index.parameters.keys()
    for name, parameter in after.index.parameters.items():
        kept = torch.equal(*(reader.read(name, WEIGHT, 0, parameter.numel) for reader in (before, after)))
        trained = any(part in name for part in (".w_in.", ".w_gate.", ".w_out."))
        assert kept == parameter.frozen == (not trained), name
