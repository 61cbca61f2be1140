"""Checkpoints of no engine, for what looks at their state or their files alone."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from training.checkpoint.capture import Capture, RankMeta, write_files, write_rest
from training.checkpoint.optimizer_state.registry import state_format
from training.checkpoint.rank_file import Entry, RankContents
from training.checkpoint.store.index import WEIGHT, rank_file_name
from training.checkpoint.store.manifest import record_text, write_manifest
from training.checkpoint.store.publish import begin, publish
from training.checkpoint.store.state import STATE_FILE, SavedState
from training.config.run import RunConfig
from training.run.folder import RunFolder


def _state(config: RunConfig, step: int) -> SavedState:
    return SavedState(
        step, 9, config.model_dump(), world_size=2, zero_stage=1, data={}, engine={}, guard={}, evaluated=None,
        metrics_bytes=0, code={},
    )  # fmt: skip


def write_checkpoint(config: RunConfig, step: int = 4, **changes: Any) -> Path:
    """Published, and the newest; ``changes`` to its state."""
    run = RunFolder(config.run_dir)
    folder = run.checkpoint(step)
    shutil.rmtree(folder, ignore_errors=True)
    partial = begin(folder)
    write_manifest(partial, [record_text(partial / STATE_FILE, replace(_state(config, step), **changes).to_json())])
    publish(folder)
    run.set_latest(folder)
    return folder


def write_capture(config: RunConfig, step: int) -> Path:
    """A published checkpoint with every kind of file, as one rank writes it, of a model of one small parameter."""
    generator = torch.Generator().manual_seed(step)
    weights = {f"a/{WEIGHT}": torch.randn(12, generator=generator)}
    adafactor = {"optimizer-00000.safetensors": {"a/second_moment/0-12": torch.randn(12)}}
    contents = RankContents({WEIGHT: "float32"}, {}, [Entry("a", (12,), False, False)], [(0, 12)])
    data = {"identity": {}, "next_example": step, "streams": {}}
    meta = RankMeta(contents, data, state_format("adafactor").describe(adafactor))
    captured = Capture({rank_file_name(0, 1): weights} | adafactor, _state(config, step), meta, [meta.pack()])
    run = RunFolder(config.run_dir)
    folder = run.checkpoint(step)
    partial = begin(folder)
    write_rest(captured, partial, write_files(captured, partial))
    publish(folder)
    run.set_latest(folder)
    return folder
