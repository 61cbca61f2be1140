"""The trials of the study: the different configurations among those of the variants, each trained once per seed.

Their cost is counted, as ``--dry-run`` prints it: FLOPs, trained parameters, and how long they take.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.tokenizer import Tokenizer
from studies.finetuning.sources import Pretrained
from studies.finetuning.variants import TABLES, Variant
from studies.results.keys import config_key
from studies.results.tables import aligned
from studies.runner.options import check_variants
from studies.runner.runs import with_overrides
from training.checkpoint.initial.fitting import find_source
from training.checkpoint.store.layout import ParallelLayout
from training.config.checks import check_layout
from training.config.errors import ConfigError
from training.config.run import RunConfig
from training.planning.cost import cost_of

# What the identity of the weights stands for.
OF_WEIGHTS = {"training": ("init_from",), "data": ("vocabulary", "task_folder")}
# Keys on which FLOPs depend.
OF_COST: Any = {"model": True, "data": True, "training": {"micro_batch_size"}}
# Of the model's keys, those that variants change and on which they do not depend.
FREE = {"dropout_rate", "expert_dropout_rate", "load_balance_coefficient", "eval_capacity_factor"}
_ALWAYS = ("training.init_from", "parallel.expert_parallel_size")  # are set for every trial
COST_HEADER = ("variants", "batch", "steps", "GFLOP/example", "TFLOP", "settings")


@dataclass(frozen=True)
class Trial:
    """A configuration that stands for one or more variants.

    Args:
        names: of the variants, in their order; the first is that of the runs.
        overrides: of the base configuration.
        config: the result; seed and place are set by ``make_run``.
        key: identifies the settings on which a run's numbers depend, on any machine.
        model: whose weights it begins with, or whose architecture it has.
    """

    names: tuple[str, ...]
    overrides: dict[str, Any]
    config: RunConfig
    key: str
    model: Pretrained

    @property
    def name(self) -> str:
        """The name of the first variant."""
        return self.names[0]

    @property
    def example_flops(self) -> float:
        """FLOPs of training on an example, forward and backward, all parameters trained."""
        return _example_flops(self.config.model_dump_json(include=OF_COST, exclude={"model": FREE}))

    @property
    def flops(self) -> float:
        """FLOPs of a run's training."""
        training = self.config.training
        return training.steps * training.global_batch_size * self.example_flops


@functools.cache
def _example_flops(values: str) -> float:
    """The same for all configurations with these sections; building a model to count takes a tenth of a second."""
    return cost_of(RunConfig.model_validate_json(values, strict=False)).training_flops


def trials_of(
    models: Mapping[str, Pretrained],
    variants: Mapping[str, Variant],
    asked: Mapping[str, Any],
    ranks: int,
    only: Sequence[str] = (),
) -> tuple[list[Trial], dict[str, str]]:
    """Return the trials, and the variants that these models cannot have, with the reason.

    Args:
        models: by kind.
        variants: by name.
        asked: how the tasks are evaluated, on which scores depend.
        ranks: processes of a run.
        only: names of variants and tables; none: all.

    Raises:
        ConfigError: a name is not known, or a named variant cannot be.
    """
    check_variants("--only", only, [*TABLES, *variants])
    grouped: dict[str, list[tuple[str, dict[str, Any], RunConfig]]] = {}
    impossible: dict[str, str] = {}
    fit: set[tuple[Any, ...]] = set()
    for name, variant in variants.items():
        model = models[variant.kind]
        try:
            overrides, config = _configure(model, variant, ranks, fit)
        except ValueError as error:
            impossible[name] = str(error)
        else:
            grouped.setdefault(_key(config, model, asked), []).append((name, overrides, config))
    for name in only:
        if name in impossible:
            raise ConfigError(f"--only {name}: {impossible[name]}")
    if not grouped:
        raise ConfigError(next(iter(impossible.values())))
    trials = []
    for key, same in grouped.items():
        names = tuple(name for name, *_ in same)
        if only and not {*names, *(variants[name].table for name in names)} & set(only):
            continue
        _, overrides, config = same[0]
        trials.append(Trial(names, overrides, config, key, models[variants[names[0]].kind]))
    return trials, impossible


def _configure(
    model: Pretrained, variant: Variant, ranks: int, fit: set[tuple[Any, ...]]
) -> tuple[dict[str, Any], RunConfig]:
    """Return the overrides of a variant, and the configuration.

    Args:
        model: whose weights it begins with.
        variant: the variant.
        ranks: processes of a run.
        fit: which weights were found to fit, added to: looking into them takes longer than all the rest.

    Raises:
        ValueError: this model cannot have these settings.
    """
    own: dict[str, Any] = {"training.init_from": str(model.run)}
    own["parallel.expert_parallel_size"] = model.config.parallel.expert_parallel_size
    overrides = own | variant.overrides
    config = with_overrides(model.config, overrides)
    stage = check_layout(config, ranks)
    training = config.training
    kind = (training.init_from, training.init_optimizer, training.trainable, training.precision, config.optimizer.name)
    if kind not in fit:
        layout = ParallelLayout.of(config.model_dump(), ranks, stage)
        find_source(config, Tokenizer(Path(config.data.vocabulary)), layout)
        fit.add(kind)
    return overrides, config


def _key(config: RunConfig, model: Pretrained, asked: Mapping[str, Any]) -> str:
    weights = model.weights if config.training.init_from else None
    return config_key(config, {"weights": weights, "words": model.vocabulary, "asked": dict(asked)}, OF_WEIGHTS)


def format_costs(trials: Sequence[Trial]) -> str:
    """Format what each trial costs, for a terminal."""
    rows: list[tuple[str, ...]] = [COST_HEADER]
    for trial in trials:
        training = trial.config.training
        own = {key: value for key, value in trial.overrides.items() if key not in _ALWAYS}
        shown = own if training.init_from else {"training.init_from": None}
        settings = [f"{key.partition('.')[2]}={value}" for key, value in shown.items()] or ["-"]
        rows.append(
            (
                " = ".join(trial.names),
                str(training.global_batch_size),
                f"{training.steps:,}",
                f"{trial.example_flops / 1e9:.3f}",
                f"{trial.flops / 1e12:,.1f}",
                " ".join(settings),
            )
        )
    return aligned(rows)


def format_duration(trials: Sequence[Trial], seeds: int, jobs: int) -> str:
    """Say how long the trials take at the speeds of the pretraining runs, which had as many ranks."""
    total = seeds * sum(trial.flops for trial in trials)
    words = f"{seeds * len(trials)} runs, {total / 1e15:.3g} PFLOP"
    unknown = {str(trial.model.run) for trial in trials if trial.model.flops_per_second is None}
    if unknown:
        return f"{words}; how long is not known, since {', '.join(sorted(unknown))} has no times of steps"
    seconds = seeds * sum(trial.flops / (trial.model.flops_per_second or 1.0) for trial in trials) / jobs
    return (
        f"{words}: about {seconds / 60:.0f} min of training at the speed at which the models were pretrained, {jobs} "
        "at a time; starts and evaluations come on top"
    )
