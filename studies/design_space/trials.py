"""The trials of a study: the different configurations among those of the variants, each trained once per seed.

Their cost is counted, as ``--dry-run`` prints it: FLOPs, parameters, widths of equal FLOPs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from studies.design_space.variants import VARIANTS
from studies.results.keys import config_key
from studies.results.tables import aligned
from studies.runner.options import check_variants
from studies.runner.runs import with_overrides
from training.config.errors import ConfigError
from training.config.run import RunConfig
from training.planning.cost import cost_of

COST_HEADER = ("variants", "d_ff", "MFLOPs/token", "of baseline", "parameters", "active", "settings")


@dataclass(frozen=True)
class Trial:
    """A configuration that stands for one or more variants.

    Args:
        names: of the variants, in their order; the first is that of the runs.
        overrides: of the base configuration.
        config: the result; seed and place are set by ``make_run``.
        key: identifies the settings on which a run's numbers depend, on any machine.
        factors: capacity factors at which its runs are evaluated besides the configuration's own.
    """

    names: tuple[str, ...]
    overrides: dict[str, Any]
    config: RunConfig
    key: str
    factors: tuple[float, ...]

    @property
    def name(self) -> str:
        """The name of the first variant."""
        return self.names[0]


def trials_of(config: RunConfig, only: Sequence[str] = ()) -> tuple[list[Trial], dict[str, str]]:
    """Return the trials of a base configuration, and the variants that it cannot have, with the reason.

    Args:
        config: the base configuration.
        only: names of variants; none: all.

    Raises:
        ConfigError: the base is dense or for fine-tuning, a name is not known, or a named variant cannot be.
    """
    if not config.architecture().num_experts:
        raise ConfigError("model.num_experts = 0: the study is of sparse models; set 2 or more")
    if config.data.objective == "tasks":
        raise ConfigError("data.objective = tasks: the study is of pretraining; set span_corruption or prefix_lm")
    check_variants("--only", only, VARIANTS)
    grouped: dict[str, list[tuple[str, dict[str, Any], RunConfig]]] = {}
    impossible: dict[str, str] = {}
    for name, variant in VARIANTS.items():
        try:
            overrides = variant.change(config)
            changed = with_overrides(config, overrides)
        except ValueError as error:
            impossible[name] = str(error)
        else:
            grouped.setdefault(config_key(changed), []).append((name, overrides, changed))
    for name in only:
        if name in impossible:
            raise ConfigError(f"--only {name}: {impossible[name]}")
    trials = []
    for key, same in grouped.items():
        names = tuple(name for name, *_ in same)
        if only and not set(names) & set(only):
            continue
        _, overrides, changed = same[0]
        own = float(changed.architecture().eval_capacity_factor)
        factors = {factor for name in names for factor in VARIANTS[name].factors} - {own}
        if not changed.architecture().num_experts:
            factors = set()
        trials.append(Trial(names, overrides, changed, key, tuple(sorted(factors))))
    return trials, impossible


def format_costs(trials: Sequence[Trial]) -> str:
    """Format what each trial costs, for a terminal; FLOPs of both passes, per position of encoder and decoder."""
    costs = [cost_of(trial.config) for trial in trials]
    first = costs[0].training_flops_of_token
    rows = [COST_HEADER]
    for trial, cost in zip(trials, costs, strict=True):
        flops = cost.training_flops_of_token
        settings = [f"{key.partition('.')[2]}={value}" for key, value in trial.overrides.items()]
        rows.append(
            (
                " = ".join(trial.names),
                str(trial.config.architecture().d_ff),
                f"{flops / 1e6:,.3f}",
                f"{flops / first:.4f}",
                f"{cost.parameters_total:,}",
                f"{cost.parameters_active:,}",
                " ".join(settings) or "-",
            )
        )
    return aligned(rows)
