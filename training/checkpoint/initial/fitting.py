"""Fits a run to the weights that it begins with: takes over what its file leaves out, refuses what differs."""

from pathlib import Path
from typing import Any

from data.tokenizer import MODEL_FILE, Tokenizer
from model.architecture import Architecture, documented_fields
from training.checkpoint.initial.source import Source, look_into
from training.checkpoint.resume import check_layout_fits
from training.checkpoint.store.layout import ParallelLayout
from training.checkpoint.store.state import Checkpoint
from training.config.errors import ConfigError
from training.config.run import RunConfig, read_values, validate
from training.config.training import TRAINABLE, TrainingConfig
from training.run.folder import RunFolder

# Keys of the model section by which runs with the same weights may differ: they change neither the parameters nor what
# the network computes of a token that reaches its experts.
FREE = {
    "dropout_rate", "expert_dropout_rate", "gating", "decoder_gating", "batch_prioritized", "top_n", "second_policy",
    "second_threshold", "capacity", "train_capacity_factor", "eval_capacity_factor", "min_capacity", "group_size",
    "router_jitter", "router_precision", "load_balance_coefficient", "router_z_coefficient", "output_z_coefficient",
    "router_loss_reduction", "initializer_scale", "router_initializer_factor",
}  # fmt: skip
# What an export serves with, in place of what was trained (``training.export.serving``).
SERVED = {"capacity", "second_policy", "batch_prioritized"}
# Keys on which the shape of an optimizer's state depends.
STATE_KEYS = {"adafactor": ("min_dim_size_to_factor", "beta1"), "adamw": (), "adamw_8bit": ()}


def load_run_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Return ``training.config.run.load_config``, where keys that are not set are those of ``training.init_from``.

    These are the keys of ``model`` and ``data.vocabulary``; with ``training.init_optimizer`` also what decides the
    shapes of the optimizer's state. A run that exists has its own, and its source need not exist any more.

    Raises:
        ConfigError: see ``load_config``; or there are no such weights.
    """
    values = read_values(path, overrides)
    _take_over(values)
    return validate(values)


def _take_over(values: dict[str, Any]) -> None:
    training, fields = values.get("training"), TrainingConfig.model_fields
    if not isinstance(training, dict):
        return
    name = training.get("init_from")
    place = [training.get(key, fields[key].default) for key in ("output_dir", "name")]
    if not (isinstance(name, str) and all(isinstance(value, str) for value in place)):
        return  # no source, or validation says what is wrong
    model, data = _section(values, "model"), _section(values, "data")
    run = RunFolder(Path(*place))
    own = run.saved_config() if run.has_checkpoint() else {}
    if own.get("training", {}).get("init_from") == name:
        known, vocabulary, left_out = own, own["data"]["vocabulary"], set[str]()
    else:
        source = look_into(Path(name), f"training.init_from = {name}")
        known, vocabulary = source.sections, source.vocabulary
        left_out = SERVED if source.run_dir is None else set()
    for field in documented_fields():
        if field.name in known["model"] and field.name not in left_out:
            model.setdefault(field.name, known["model"][field.name])
    if vocabulary is not None:
        data.setdefault("vocabulary", str(vocabulary))
    optimizer, theirs = _section(values, "optimizer"), known.get("optimizer", {})
    if training.get("init_optimizer") and optimizer.get("name", "adafactor") == theirs.get("name"):
        for key in STATE_KEYS[theirs["name"]]:
            optimizer.setdefault(key, theirs[key])


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    section = values.setdefault(name, {})
    return section if isinstance(section, dict) else {}


def find_source(config: RunConfig, tokenizer: Tokenizer, layout: ParallelLayout) -> Source | None:
    """Return what ``training.init_from`` names, None without it; imports no torch.

    Args:
        config: of the run.
        tokenizer: of the run.
        layout: of the run.

    Raises:
        ConfigError: the folder holds no weights, or they belong to another vocabulary or architecture than the run's;
            or the optimizer's state is asked for, and it is not there or does not fit.
    """
    if config.training.init_from is None:
        return None
    key = f"training.init_from = {config.training.init_from}"
    source = look_into(Path(config.training.init_from), key)
    if source.fingerprint is None:
        raise ConfigError(f"{key} has no {MODEL_FILE} that could be compared with data.vocabulary: put it there")
    if source.fingerprint != tokenizer.fingerprint:
        raise ConfigError(
            f"{key} was trained with another vocabulary (fingerprint {source.fingerprint}) than data.vocabulary = "
            f"{config.data.vocabulary} ({tokenizer.fingerprint}): set data.vocabulary to the one of these weights"
        )
    _check_same("model", _model_of(source, key), vars(config.architecture()), key)
    if config.training.init_optimizer:
        _check_optimizer(source, config, layout, key)
    return source


def _model_of(source: Source, key: str) -> dict[str, Any]:
    """The compared keys of the model section that the weights were trained with, defaults resolved."""
    known = {f.name: source.sections["model"].get(f.name, f.default) for f in documented_fields()}
    try:
        resolved = vars(Architecture(**known))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key} is of an architecture that this version does not know: {error}") from None
    return {name: value for name, value in resolved.items() if name not in FREE}


def _check_same(section: str, theirs: dict[str, Any], ours: dict[str, Any], key: str) -> None:
    for name, value in theirs.items():
        if value != ours[name]:
            raise ConfigError(
                f"{key} has {section}.{name} = {value}, and this run {section}.{name} = {ours[name]}: set "
                f"{section}.{name}={value}, or name other weights"
            )


def _check_optimizer(source: Source, config: RunConfig, layout: ParallelLayout, key: str) -> None:
    if source.state is None:
        raise ConfigError(
            f"training.init_optimizer = true but {key} is an export, which holds weights alone: name the run or a "
            "checkpoint, or set false"
        )
    trained = source.sections["training"].get("trainable", "all")
    if not TRAINABLE[config.training.trainable] <= TRAINABLE[trained]:
        raise ConfigError(
            f"training.init_optimizer = true but {key} was trained with training.trainable = {trained}, and this run "
            f"with training.trainable = {config.training.trainable}: set {trained}, or training.init_optimizer=false"
        )
    theirs, ours = source.sections["optimizer"], config.optimizer.model_dump()
    _check_same("optimizer", {"name": theirs["name"]}, ours, key)
    _check_same("optimizer", {name: theirs[name] for name in STATE_KEYS[theirs["name"]]}, ours, key)
    check_layout_fits(Checkpoint(source.folder, source.state), layout)
