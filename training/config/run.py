"""A run's whole configuration: one YAML file of six sections, merged with ``key=value`` overrides and validated.

Imports neither torch nor transformers, which take seconds: a mistake is reported at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from common.paths import nearest, searched
from common.project import ROOT
from data.config import DataConfig
from model.architecture import Architecture, documented_fields
from optim.config import OptimizerConfig
from parallel.config import ParallelConfig
from training.config.errors import ConfigError
from training.config.guard import GuardConfig
from training.config.mistakes import first_mistake
from training.config.overrides import override, resolve
from training.config.training import TrainingConfig
from training.config.values import read_yaml

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
    return validate(read_values(path, overrides))


def read_values(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """Return the plain values of ``load_config``, not yet validated. Raises ConfigError."""
    file = Path(path)
    try:
        values = read_yaml(file.read_bytes(), SECTIONS)
    except OSError as error:
        raise ConfigError(_unreadable(path, error)) from None
    except ConfigError as error:
        raise ConfigError(f"--config {path}: {error}") from None
    for text in overrides or []:
        override(values, text, SECTIONS)
    values = resolve(values)
    _check_kind(values, path)
    _find_deepspeed_file(values, file.parent)
    return values


def _check_kind(values: dict[str, Any], path: str | Path) -> None:
    """Check that a file has a model section, where that is its only mistake. Raises ConfigError: names the file."""
    if "zero_optimization" in values:
        raise ConfigError(
            f"--config {path} is a DeepSpeed file: name it with training.deepspeed_config={path}, and with --config a "
            "YAML file, such as configs/tiny.yaml"
        )
    if set(values) <= set(SECTIONS) - {"model"}:
        raise ConfigError(f"--config {path} has no section model: add it, or name another file")


def validate(values: Any) -> RunConfig:
    """Validate plain values, nested as in the YAML file. Raises ConfigError on the first mistake."""
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(first_mistake(error, SECTIONS)) from None
    try:
        config.architecture()
        if config.optimizer.decay_steps is None:
            config.optimizer.check_decay(config.training.steps, "training.steps")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    _check_kept(config)
    _check_answers(config)
    _check_trainable(config)
    if config.training.init_optimizer and config.training.init_from is None:
        raise ConfigError(
            "training.init_optimizer = true without training.init_from: name the run whose optimizer's state is meant, "
            "or set false"
        )
    profiled = config.training.profile.steps
    if profiled is not None and profiled[1] > config.training.steps:
        raise ConfigError(
            f"training.profile.steps = {profiled}: the run ends at training.steps = {config.training.steps}: set "
            "earlier steps"
        )
    return config


def _check_trainable(config: RunConfig) -> None:
    model = config.architecture()
    if config.training.trainable == "moe" and not model.sparse_layer_names():
        raise ConfigError(
            "training.trainable = moe but model.num_experts = 0: a dense model has neither experts nor routers; set "
            "all, dense_feed_forward or attention"
        )
    if config.training.trainable == "dense_feed_forward" and not model.has_dense_feed_forward():
        raise ConfigError(
            f"training.trainable = dense_feed_forward but all feed-forwards are sparse (model.sparse_step = "
            f"{model.sparse_step}), and none has a dense one beside it (model.extra_feed_forward = none): set all, "
            "non_moe, moe or attention"
        )


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


def _check_answers(config: RunConfig) -> None:
    t = config.training
    if t.eval_answers and config.data.objective != "tasks":
        raise ConfigError(
            f"training.eval_answers = {t.eval_answers} with data.objective = {config.data.objective}, which asks "
            "nothing: set 0, or data.objective=tasks"
        )
    if t.keep_best in ("score", "tasks") and not t.eval_answers:
        fix = "training.eval_answers=256" if config.data.objective == "tasks" else "training.keep_best=cross_entropy"
        raise ConfigError(
            f"training.keep_best = {t.keep_best} without training.eval_answers, by which answers are scored: set {fix}"
        )


def _unreadable(path: str | Path, error: OSError) -> str:
    """Say why ``--config`` cannot be read."""
    file = Path(path)
    if file.is_dir():
        return f"--config {path} is a folder: name a file, such as configs/tiny.yaml"
    if not isinstance(error, FileNotFoundError):
        return f"--config {path} cannot be read: {error.strerror}"
    same = [
        name for name in (f"{path}.yaml", f"configs/{file.name}", f"configs/{file.name}.yaml") if Path(name).is_file()
    ]
    near = nearest(file)
    close = same or ([str(near)] if near is not None and near.is_file() else [])
    fix = f"did you mean {close[0]}?" if close else f"this project's are in {ROOT / 'configs'}"
    return f"--config {path}: no such file{searched(path)}; {fix}"


def _find_deepspeed_file(values: dict[str, Any], folder: Path) -> None:
    """Let a DeepSpeed file that is beside the config file, but not in the current folder, be found later."""
    section = values.get("training")
    name = section.get("deepspeed_config") if isinstance(section, dict) else None
    if isinstance(section, dict) and isinstance(name, str) and not Path(name).exists() and (folder / name).is_file():
        section["deepspeed_config"] = str((folder / name).absolute())
