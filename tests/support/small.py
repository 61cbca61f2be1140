"""The configuration of a run with a small sparse model, and batches for it."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.config.run import RunConfig, validate

SMALL_MODEL: dict[str, Any] = {
    "vocab_size": 256, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 4, "num_experts": 4,
    "group_size": 64,
}  # fmt: skip

# For tests of more than a few steps: of two blocks in each stack, the second is sparse.
TWO_BLOCKS: dict[str, Any] = {"num_layers": 2, "sparse_step": 2}


def small_config(
    tmp_path: Path, *, model: dict[str, Any] | None = None, zero_stage: int = 1, **sections: dict[str, Any]
) -> RunConfig:
    """Return the configuration of ``SMALL_MODEL`` in fp32 with 8 sequences a step, overridden section by section."""
    ds_file = tmp_path / f"zero{zero_stage}.json"
    written = ds_file.with_suffix(f".{os.getpid()}")  # every rank writes it, and may read while another writes
    written.write_text(json.dumps({"zero_optimization": {"stage": zero_stage}}))
    written.replace(ds_file)
    training = {
        "precision": "fp32", "global_batch_size": 8, "micro_batch_size": 4, "deepspeed_config": str(ds_file),
        "output_dir": str(tmp_path / "runs"), "name": "small",
    }  # fmt: skip
    return validate(
        {
            "model": SMALL_MODEL | (model or {}),
            "data": sections.get("data", {}),
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 5} | sections.get("optimizer", {}),
            "parallel": sections.get("parallel", {}),
            "guard": sections.get("guard", {}),
            "training": training | sections.get("training", {}),
        }
    )


def global_batch(step: int, sequences: int, vocab_size: int = 256) -> dict[str, Tensor]:
    """Return random ``input_ids [n, 32]`` and ``labels [n, 16]`` with unequal padding, the same on every rank."""
    generator = torch.Generator().manual_seed(1000 + step)
    inputs = torch.randint(2, vocab_size, (sequences, 32), generator=generator)
    labels = torch.randint(2, 18, (sequences, 16), generator=generator)  # few kinds, so that a few steps learn
    for row in range(sequences):
        inputs[row, 32 - 3 * (row % 4) :] = 0
        labels[row, 16 - 2 * (row % 5) :] = -100
    inputs[::4] = torch.where(inputs[::4] == 0, 7, inputs[::4])
    return {"input_ids": inputs, "labels": labels}
