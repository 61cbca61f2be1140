"""A run's whole configuration: one YAML file of six sections, merged with ``key=value`` overrides and validated.

Imports neither torch nor transformers, which take seconds: a mistake is reported at once.
"""

import difflib
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from yaml import YAMLError  # OmegaConf's PyYAML

from data.config import DataConfig
from model.architecture import Architecture, documented_fields
from optim.config import OptimizerConfig
from parallel.config import ParallelConfig
from training.config.errors import FP16_REFUSED, ConfigError
from training.config.guard import GuardConfig
from training.config.training import TrainingConfig

if TYPE_CHECKING:
    from model.config import StMoeConfig

    ModelSection = BaseModel
else:
    ModelSection = create_model(
        "ModelSection",
        __config__=ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=()),
        **{f.name: (f.type, Field(f.default, description=f.metadata["doc"])) for f in documented_fields()},
    )


class RunConfig(BaseModel):
    """All sections, frozen. What depends on ranks and files is checked by ``training.config.checks`` and ``inputs``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    model: ModelSection
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    parallel: ParallelConfig = ParallelConfig()
    training: TrainingConfig = TrainingConfig()
    guard: GuardConfig = GuardConfig()

    def architecture(self) -> Architecture:
        """Return the model section with its defaults resolved. Raises ValueError if it is not valid."""
        return Architecture(**self.model.model_dump())

    def st_moe_config(self) -> "StMoeConfig":
        """Return the model section as the Hugging Face config; imports transformers, and torch with it."""
        from model.config import StMoeConfig

        return StMoeConfig(**self.model.model_dump())

    @property
    def run_dir(self) -> Path:
        """The run folder."""
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
    """Read a YAML file, merge the overrides and validate the result.

    Args:
        path: the YAML file.
        overrides: ``section.key=value``; later ones win.

    Raises:
        ConfigError: names the first mistake on one line.
    """
    if not Path(path).is_file():
        raise ConfigError(f"--config {path}: no such file; this project's are in configs/")
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
    """Validate plain values, nested as in the YAML file. Raises ConfigError on the first mistake."""
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_first_mistake(error)) from None
    try:
        config.architecture()
        if config.optimizer.decay_steps is None:
            config.optimizer.check_decay(config.training.steps, "training.steps")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    _check_kept(config)
    return config


def _check_kept(config: RunConfig) -> None:
    keep, every = config.training.keep_checkpoints, config.training.keep_every
    if keep is None and every is not None:
        raise ConfigError(
            f"training.keep_every = {every} without training.keep_checkpoints, which keeps all: set both, or neither"
        )
    if keep == 1 and config.guard.spike_threshold:
        raise ConfigError(
            f"training.keep_checkpoints = 1 with guard.spike_threshold = {config.guard.spike_threshold}: the only "
            "checkpoint may be too near a spike to roll back to; keep at least 2"
        )


def _first_mistake(error: ValidationError) -> str:
    mistake, *others = error.errors()
    key, siblings = _locate(mistake["loc"])
    if (
        mistake["type"] == "value_error"
    ):  # from a validator of this project, which names value and fix, and usually the key
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
    """Return the key at a location of pydantic's, and its sibling keys."""
    names = [str(part) for part in location]
    if len(location) < 2:
        return ".".join(names) or "the config", list(SECTIONS)
    fields = SECTIONS[names[0]].model_fields
    if len(location) > 2 and isinstance(location[2], int):  # an item of a list of sections
        item = typing.get_args(fields[names[1]].annotation)[0]
        return ".".join([f"{names[0]}.{names[1]}[{location[2]}]", *names[3:4]]), list(item.model_fields)
    # pydantic adds the members of a union to the path
    return ".".join(names[:2]), list(fields)
