"""DeepSpeed's configuration: the user's JSON file, completed from the YAML config."""

import json
from pathlib import Path
from typing import Any

from training.config.errors import FP16_REFUSED, ConfigError
from training.config.run import RunConfig

# DeepSpeed's keys that the YAML config sets, and where.
OWNED_KEYS = {
    "train_batch_size": "training.global_batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.global_batch_size and training.micro_batch_size",
    "gradient_clipping": "optimizer.gradient_clipping",
    "optimizer": "the optimizer section",
    "scheduler": "the optimizer section",
    "bf16": "training.precision",
    "torch_autocast": "training.precision",
}


def read_deepspeed_file(path: str) -> dict[str, Any]:
    """Read the user's JSON file. Raises ConfigError if it is missing, broken, or sets a key of ``OWNED_KEYS``."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"training.deepspeed_config = {path}: no such file; this project's are in ds_configs/")
    try:
        options = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"training.deepspeed_config = {path}: not valid JSON: {error}") from None
    if not isinstance(options, dict):
        raise ConfigError(f"training.deepspeed_config = {path}: must be a JSON object")
    if "fp16" in options:
        raise ConfigError(f"training.deepspeed_config = {path}: fp16 {FP16_REFUSED}; set training.precision")
    for key, owner in OWNED_KEYS.items():
        if key in options:
            raise ConfigError(f"training.deepspeed_config = {path}: remove {key!r}, which is set by {owner}")
    stage = zero_stage(options)
    if stage not in (0, 1, 2, 3):
        raise ConfigError(
            f"training.deepspeed_config = {path}: zero_optimization.stage = {stage!r} must be 0, 1, 2 or 3"
        )
    return options


def zero_stage(options: dict[str, Any]) -> Any:
    """Return the ZeRO stage of these options, 0 by default; not checked."""
    section = options.get("zero_optimization", {})
    return section.get("stage", 0) if isinstance(section, dict) else section


def accumulation_steps(config: RunConfig, world_size: int) -> int:
    """Return the micro-batches per rank and step. Raises ConfigError if the global batch is not divisible."""
    t = config.training
    per_pass = t.micro_batch_size * world_size
    if t.global_batch_size % per_pass:
        raise ConfigError(
            f"training.global_batch_size = {t.global_batch_size} is not divisible by training.micro_batch_size x world "
            f"size = {t.micro_batch_size} x {world_size}: set a multiple of {per_pass}, or a smaller "
            "training.micro_batch_size"
        )
    return t.global_batch_size // per_pass


def deepspeed_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """Return the configuration for ``deepspeed.initialize``. Raises ConfigError."""
    precision = config.training.precision
    options = read_deepspeed_file(config.training.deepspeed_config)
    options |= {
        "train_batch_size": config.training.global_batch_size,
        "train_micro_batch_size_per_gpu": config.training.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(config, world_size),
        # At stage 0 DeepSpeed clips wrongly when experts are spread over ranks: see optim/stage_zero.py.
        "gradient_clipping": config.optimizer.gradient_clipping if zero_stage(options) else 0.0,
        "bf16": {"enabled": precision == "bf16"},
    }
    # DeepSpeed wants to be told that the optimizer is not one of its own.
    options |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    if precision == "bf16_autocast":
        options["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    options.setdefault("steps_per_print", 2**31)  # the trainer reports
    return options
