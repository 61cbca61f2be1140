"""The pretrained runs with whose weights the study begins, and the configurations of fine-tuning them."""

import hashlib
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from studies.runner.runs import to_arguments
from training.checkpoint.initial.fitting import load_run_config
from training.checkpoint.initial.source import Source, look_into
from training.checkpoint.store.manifest import MANIFEST_FILE
from training.config.errors import ConfigError
from training.config.run import RunConfig, load_config, validate
from training.monitoring.columns import STEP_SECONDS, training_rows
from training.planning.cost import cost_of
from training.run.folder import RunFolder

SPARSE, DENSE = "sparse", "dense"
DIGITS = 16


class Pretrained(NamedTuple):
    """A pretrained run, sparse or dense.

    Args:
        kind: ``SPARSE`` or ``DENSE``.
        run: its folder, or one of its checkpoints, as the user named it.
        weights: identifies the weights, on any machine.
        vocabulary: its fingerprint.
        config: of the study's base configuration with these weights.
        scratch: overrides of ``config`` for the same model with random weights.
        flops_per_second: of its own training, over all ranks; None: its folder does not tell.
    """

    kind: str
    run: Path
    weights: str
    vocabulary: str
    config: RunConfig
    scratch: dict[str, Any]
    flops_per_second: float | None


def pretrained(kind: str, run: Path, config_file: str, overrides: Sequence[str]) -> Pretrained:
    """Find a pretrained run, and read the study's base configuration with its architecture.

    Args:
        kind: what the run is to be, ``SPARSE`` or ``DENSE``.
        run: a run, of which the newest checkpoint is taken, or a checkpoint.
        config_file: the base configuration.
        overrides: ``key=value`` arguments.

    Raises:
        ConfigError: there is no such run, it is of the other kind, or the configuration does not fit it.
    """
    option = f"--{kind} {run}"
    source = look_into(run, option)
    if source.run_dir is None:
        raise ConfigError(f"{option} is an export, which holds weights alone: name the run that it was made of")
    experts = source.sections["model"].get("num_experts", 0)
    if bool(experts) != (kind == SPARSE):
        other = DENSE if kind == SPARSE else SPARSE
        raise ConfigError(f"{option} is a {other} model (model.num_experts = {experts}): name it with --{other}")
    words = [*overrides, f"training.init_from={run}"]
    if kind == DENSE:
        words.append("parallel.expert_parallel_size=1")
    config = load_run_config(config_file, words)
    manifest = (source.folder / MANIFEST_FILE).read_bytes()
    assert source.fingerprint is not None
    return Pretrained(
        kind=kind,
        run=run,
        weights=hashlib.sha256(manifest).hexdigest()[:DIGITS],
        vocabulary=source.fingerprint,
        config=config,
        scratch=_without_weights(config, config_file, overrides),
        flops_per_second=_speed(source),
    )


def check_twins(models: Sequence[Pretrained]) -> None:
    """Raise ConfigError if the models cannot be compared: their vocabularies differ."""
    for model in models[1:]:
        if model.vocabulary != models[0].vocabulary:
            raise ConfigError(
                f"--{model.kind} {model.run} has another vocabulary (fingerprint {model.vocabulary}) than "
                f"--{models[0].kind} {models[0].run} ({models[0].vocabulary}): name twins that were trained with one"
            )


def _without_weights(config: RunConfig, config_file: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the overrides that give random weights to the architecture of a configuration."""
    own: dict[str, Any] = {"training.init_from": None, "training.init_optimizer": False}
    plain = load_config(config_file, [*overrides, *to_arguments(own)])
    for section in ("model", "data", "optimizer", "parallel"):
        ours, theirs = config.model_dump()[section], plain.model_dump()[section]
        own |= {f"{section}.{key}": value for key, value in ours.items() if value != theirs[key]}
    return own


def _speed(source: Source) -> float | None:
    """Return the FLOPs per second at which a run was trained."""
    assert source.run_dir is not None
    seconds = [row[STEP_SECONDS] for row in training_rows(RunFolder(source.run_dir).rows()) if row.get(STEP_SECONDS)]
    if not seconds:
        return None
    config = validate(source.sections)
    return config.training.global_batch_size * cost_of(config).training_flops / statistics.median(seconds)
