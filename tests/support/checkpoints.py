"""Checkpoints of no engine, for what looks at their state or their files alone."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from training.checkpoint.capture import Capture, RankMeta, write_files, write_rest
from training.checkpoint.rank_file import Range, RankContents
from training.checkpoint.store.index import WEIGHT, StoredRange, rank_file_name
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
    own, adafactor = rank_file_name(0, 1), {"optimizer-00000.safetensors": {"a/second_moment/0-12": torch.randn(12)}}
    contents = RankContents({WEIGHT: torch.float32}, {}, [Range("a", (12,), False, StoredRange(0, 12, own), False)])
    meta = RankMeta(contents, {}, {file: list(tensors) for file, tensors in adafactor.items()})
    captured = Capture({own: weights} | adafactor, _state(config, step), [meta])
    run = RunFolder(config.run_dir)
    folder = run.checkpoint(step)
    partial = begin(folder)
    write_rest(captured, partial, write_files(captured, partial))
    publish(folder)
    run.set_latest(folder)
    return folder
