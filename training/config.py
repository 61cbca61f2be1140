"""A run's whole configuration: one YAML file of six sections, merged with ``key=value`` overrides and validated."""

import difflib
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.errors import StrictDataclassError
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from yaml import YAMLError  # PyYAML, by OmegaConf

from data.config import DataConfig
from model.config import StMoeConfig, documented_fields
from optim.config import OptimizerConfig
from parallel.config import ParallelConfig
from training.guard import GuardConfig

FP16_REFUSED = "overflows in T5-like models: use bf16 or fp32"


class ConfigError(ValueError):
    """A mistake of the user's: one line that names key, value and fix."""


class TrainingConfig(BaseModel):
    """The training section."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run's folder.")
    output_dir: str = Field("runs", min_length=1, description="Folder of the run folders.")
    steps: int = Field(500_000, ge=1, description="Optimizer updates.")
    global_batch_size: int = Field(2048, ge=1, description="Sequences per update, over all ranks.")
    micro_batch_size: int = Field(8, ge=1, description="Sequences per rank and forward pass.")
    precision: Literal["fp32", "bf16", "bf16_autocast"] = Field(
        "bf16_autocast",
        description="fp32; bf16: bf16 weights with an fp32 master copy; bf16_autocast: fp32 weights, bf16 products "
        "(the paper's).",
    )
    deepspeed_config: str = Field("ds_configs/zero1.json", description="DeepSpeed's own options, a JSON file.")
    activation_checkpointing: bool = Field(False, description="Recompute blocks in the backward pass to save memory.")
    seed: int = Field(0, ge=0, description="Seed of the initial weights and of all randomness in training.")
    log_every: int = Field(10, ge=1, description="Steps between rows of metrics.")
    eval_every: int = Field(1000, ge=1, description="Steps between evaluations; there is always one at the end.")
    eval_examples: int = Field(
        4096, ge=1, description="Held-out sequences in an evaluation; divisible by micro_batch_size x world size."
    )
    save_every: int = Field(1000, ge=1, description="Steps between checkpoints; there is always one at the end.")
    save_in_background: bool = Field(
        True,
        description="Write checkpoints beside the training, from a copy in host memory of what this rank writes; "
        "false: training waits, and no copy is made.",
    )
    keep_checkpoints: int | None = Field(
        None, ge=1, description="Newest checkpoints that are kept; older ones are removed. null: all are kept."
    )
    keep_every: int | None = Field(
        None, ge=1, description="Checkpoints whose step is a multiple of this are kept too; needs keep_checkpoints."
    )
    on_save_error: Literal["stop", "continue"] = Field(
        "stop",
        description="A checkpoint that cannot be written (disk full): end the run, or go on until the next one.",
    )
    timeout_seconds: float = Field(
        1800.0,
        gt=0,
        description="Seconds within which the other ranks end, and name the rank, when one is dead or hangs; also how "
        "long a collective waits. Longer than an evaluation.",
    )


if TYPE_CHECKING:
    ModelSection = BaseModel
else:
    ModelSection = create_model(
        "ModelSection",
        __config__=ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=()),
        **{f.name: (f.type, Field(f.default, description=f.metadata["doc"])) for f in documented_fields()},
    )


class RunConfig(BaseModel):
    """All sections, frozen and valid in themselves; what depends on ranks and files is checked in ``preflight``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    model: ModelSection
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    parallel: ParallelConfig = ParallelConfig()
    training: TrainingConfig = TrainingConfig()
    guard: GuardConfig = GuardConfig()

    def st_moe_config(self) -> StMoeConfig:
        """The model section as the Hugging Face config."""
        return StMoeConfig(**self.model.model_dump())

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return Path(self.training.output_dir) / self.training.name


SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelSection,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "parallel": ParallelConfig,
    "training": TrainingConfig,
    "guard": GuardConfig,
}


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read, merge and validate.

    Args:
        path: the YAML file.
        overrides: ``section.key=value``, later ones win.

    Raises:
        ConfigError: one line on the first mistake.
    """
    if not Path(path).is_file():
        raise ConfigError(f"--config {path}: no such file; the configs of this project are in configs/")
    for override in overrides or []:
        key, equals, _ = override.partition("=")
        if not equals or "." not in key:
            raise ConfigError(f"override {override!r} is not of the form section.key=value, such as training.steps=100")
    try:
        merged = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(overrides or []))
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    return validate(values)


def validate(values: Any) -> RunConfig:
    """Plain values, as ``load_config`` reads them → ``RunConfig``. Raises ConfigError."""
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_first_mistake(error)) from None
    try:
        config.st_moe_config()
    except StrictDataclassError as error:
        raise ConfigError(" ".join(str(error.__cause__ or error).split())) from None
    _check_kept(config)
    if config.optimizer.decay_steps is None:
        try:
            config.optimizer.check_decay(config.training.steps, "training.steps")
        except ValueError as error:
            raise ConfigError(str(error)) from None
    return config


def _check_kept(config: RunConfig) -> None:
    keep, every = config.training.keep_checkpoints, config.training.keep_every
    if keep is None and every is not None:
        raise ConfigError(
            f"training.keep_every = {every} without training.keep_checkpoints, so all are kept: set both, or neither"
        )
    if keep == 1 and config.guard.spike_threshold:
        raise ConfigError(
            f"training.keep_checkpoints = 1 with guard.spike_threshold = {config.guard.spike_threshold}: the only "
            "checkpoint may be too near a spike to go back to; keep at least 2"
        )


def _first_mistake(error: ValidationError) -> str:
    mistake, *others = error.errors()
    key, siblings = _locate(mistake["loc"])
    if mistake["type"] == "value_error":  # a validator of this project: names value and fix itself, and mostly the key
        text = str(mistake["ctx"]["error"])
        return text if text.startswith(tuple(f"{section}." for section in SECTIONS)) else f"{key}: {text}"
    value = mistake["input"]
    also = f" (and {len(others)} more)" if others and others[0]["loc"][:2] != mistake["loc"][:2] else ""
    if mistake["type"] == "extra_forbidden":
        parent, _, name = key.rpartition(".")
        close = difflib.get_close_matches(name, siblings, n=1)
        fix = f"did you mean {parent + '.' if parent else ''}{close[0]}?" if close else "see train.py --help"
        return f"{key} = {value!r}: unknown key; {fix}{also}"
    if mistake["type"] == "missing":
        return f"{key} is missing: add it to the config file{also}"
    if key == "training.precision" and value in ("fp16", "float16", "half"):
        return f"{key} = {value}: fp16 {FP16_REFUSED}{also}"
    reason = mistake["msg"][0].lower() + mistake["msg"][1:]
    return f"{key} = {value!r}: {reason}; see train.py --help{also}"


def _locate(location: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """The key at a place in pydantic's words, and the keys known beside it."""
    names = [str(part) for part in location]
    if len(location) < 2:
        return ".".join(names) or "the config", list(SECTIONS)
    fields = SECTIONS[names[0]].model_fields
    if len(location) > 2 and isinstance(location[2], int):  # an item of a list of sections
        item = typing.get_args(fields[names[1]].annotation)[0]
        return ".".join([f"{names[0]}.{names[1]}[{location[2]}]", *names[3:4]]), list(item.model_fields)
    # pydantic adds the members of a union to the path
    return ".".join(names[:2]), list(fields)
