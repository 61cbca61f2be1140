"""Checkpoints without tensors, for what looks at their state alone."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.config import RunConfig
from training.manifest import record_text, write_manifest
from training.publish import begin, publish, set_latest
from training.saved_state import STATE_FILE, SavedState, checkpoints_dir


def write_checkpoint(config: RunConfig, step: int = 4, **changes: Any) -> Path:
    """Published, and the newest; ``changes`` to its state."""
    state = SavedState(
        step, 9, config.model_dump(), world_size=2, zero_stage=1, data={}, engine={}, guard={}, evaluated=None,
        metrics_bytes=0, code={},
    )  # fmt: skip
    folder = checkpoints_dir(config.run_dir) / f"step_{step:08d}"
    shutil.rmtree(folder, ignore_errors=True)
    partial = begin(folder)
    write_manifest(partial, [record_text(partial / STATE_FILE, replace(state, **changes).to_json())])
    publish(folder)
    set_latest(folder)
    return folder
