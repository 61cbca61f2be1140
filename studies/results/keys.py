"""What identifies a run of a study on any machine: a hash of the settings on which its numbers depend."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from common.strict_json import to_json
from training.config.run import RunConfig

# Settings with which a run computes the same, or nearly: where it lies, how it is spread, how it is watched.
PLACE = {
    "training": {
        "name", "output_dir", "seed", "deepspeed_config", "log_every", "eval_every", "save_every", "save_in_background",
        "keep_checkpoints", "keep_every", "keep_best", "eval_answers", "eval_answers_by", "on_save_error", "monitor",
        "profile", "timeout_seconds", "silence_timeout_seconds", "start_timeout_seconds",
    },
    "data": {"num_workers", "prefetch_batches", "retries", "retry_seconds", "remote_block_bytes", "on_other_text"},
    "optimizer": {"non_finite"},
    "parallel": {"expert_parallel_size"},
    "guard": {"spike_threshold"},
}  # fmt: skip
HASH_DIGITS = 12


def config_key(
    config: RunConfig, more: Mapping[str, Any] | None = None, without: Mapping[str, Iterable[str]] | None = None
) -> str:
    """Return a hash of the settings on which a run's numbers depend, without those that have their default value.

    A later version of this project that adds a setting, and keeps what was as its default, gives the same key.

    Args:
        config: of the run.
        more: what the numbers depend on besides.
        without: section → keys that ``more`` stands for.
    """
    left_out = {
        section: {*PLACE.get(section, ()), *(without or {}).get(section, ())} for section in {*PLACE, *(without or {})}
    }
    values = config.model_dump(exclude_defaults=True, exclude=left_out) | dict(more or {})
    return hashlib.sha256(to_json({k: v for k, v in sorted(values.items()) if v}).encode()).hexdigest()[:HASH_DIGITS]
