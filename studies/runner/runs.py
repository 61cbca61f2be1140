"""A run of a study, which is a call of ``train.py``: its folder, its progress and its result."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from common.strict_json import to_json
from studies.runner.divergence import Verdict, judge
from training.checkpoint.initial.fitting import load_run_config
from training.config.errors import ConfigError
from training.config.run import RunConfig, validate
from training.monitoring.columns import CROSS_ENTROPY, DECISION, REASON, STEP, VALIDATION, split_of, training_rows
from training.run.folder import RunFolder

LOG_EVERY = "training.log_every"  # taken from the user, where it is short enough
OPTIONS = {
    "training.seed": "use --seeds",
    "training.output_dir": "use --out",
    "training.name": "use --out, the folder of all runs",
}
LOGGED_ROWS = 100  # at least, if the run has as many steps: a spike between two rows goes unnoticed


@dataclass(frozen=True)
class Run:
    """A run of ``variant`` with ``seed``.

    Args:
        variant: name of the variant.
        seed: ``training.seed``.
        config_file: the argument of ``train.py --config``.
        overrides: ``section.key=value`` arguments, among them the name of the run's folder.
        config: the resulting configuration.
    """

    variant: str
    seed: int
    config_file: str
    overrides: tuple[str, ...]
    config: RunConfig

    @property
    def name(self) -> str:
        """The name of the run's folder and log."""
        return self.config.training.name

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.config.run_dir)

    @property
    def dir(self) -> Path:
        """The path of the run's folder."""
        return self.config.run_dir

    @property
    def log(self) -> Path:
        """The file of the run's output."""
        return self.dir.parent.parent / "logs" / f"{self.name}.log"

    def can_resume(self) -> bool:
        """Return whether the run has a checkpoint."""
        return self.folder.latest() is not None

    def result(self) -> "Result":
        """Read the result from the run's files alone; interruptions of the run make no difference."""
        rows = self.folder.rows()
        verdict = judge(training_rows(rows), self.config.training.steps)
        stop = next((row for row in rows if row.get(DECISION) == "stop"), None)
        if stop is not None and verdict.stable:
            verdict = Verdict(int(stop[STEP]), stop[REASON].partition(",")[0], verdict.spikes)
        last = next((row for row in reversed(rows) if split_of(row) == VALIDATION), None)
        complete = self.folder.summary() is not None
        over = complete or stop is not None
        if last is None or not complete:
            last = {}
        return Result(
            variant=self.variant,
            seed=self.seed,
            status="unfinished" if not over else "stable" if verdict.stable else "diverged",
            verdict=verdict,
            quality=_negative(last.get(CROSS_ENTROPY)),
            metrics={k: v for k, v in last.items() if k != STEP and isinstance(v, int | float)},
        )

    def clear_the_way(self) -> None:
        """Remove the folder of an attempt without a checkpoint, which ``train.py`` would not overwrite."""
        if self.dir.exists() and not self.can_resume():
            shutil.rmtree(self.dir)

    def check_same(self) -> None:
        """Check that the folder, if it exists, holds a run with the same settings.

        Raises:
            ConfigError: a setting differs.
        """
        path = self.folder.config_file
        if not path.is_file():
            return
        there = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        for section, keys in self.config.model_dump().items():
            for key, value in keys.items():
                before = there.get(section, {}).get(key, value)  # a run of an older version may lack the key
                if before != value:
                    raise ConfigError(
                        f"{self.dir} holds a run with {section}.{key} = {before}, not {value}: set another --out"
                    )


@dataclass(frozen=True)
class Result:
    """Result of a run: its status, and the metrics on held-out text after the last step."""

    variant: str
    seed: int
    status: Literal["stable", "diverged", "unfinished"]
    verdict: Verdict
    quality: float | None  # negative log perplexity: minus the cross-entropy, nats per target token; None: not finished
    metrics: dict[str, float]  # numbers of the last validation row of metrics.jsonl; empty if the run is not finished


def make_run(
    config_file: str, arguments: Sequence[str], variant: str, seed: int, out: Path, overrides: Mapping[str, Any]
) -> Run:
    """Define a run of a study from the config, the user's ``key=value`` arguments, and the study's ``overrides``.

    Besides ``overrides``, the study sets ``training.seed`` (for initial weights and all randomness in training; the
    order of the text is the same in all runs), a single evaluation at the end, and an interval of logging short enough
    to see spikes. A gradient that is not finite ends the run, and the guard does not roll back spikes.

    Args:
        config_file: path of the configuration.
        arguments: the user's ``key=value`` arguments.
        variant: name of the variant.
        seed: ``training.seed``.
        out: output folder of the study.
        overrides: settings of the variant; where the study would set the same key, this one stands.

    Raises:
        ConfigError: the resulting configuration is not valid.
    """
    given, arguments = arguments, [*arguments, *to_arguments(overrides)]
    base = load_run_config(config_file, arguments)
    steps = base.training.steps
    own: dict[str, Any] = {
        "training.seed": seed,
        "training.eval_every": steps,
        LOG_EVERY: min(base.training.log_every, max(1, steps // LOGGED_ROWS)),
        "optimizer.non_finite": "stop",
        "guard.spike_threshold": 0.0,
        "training.output_dir": str(out / "runs"),
        "training.name": f"{variant}-{seed}",
    }
    own = {key: value for key, value in own.items() if key not in overrides}
    _check_free(given, own)
    arguments += to_arguments(own)
    return Run(variant, seed, config_file, tuple(arguments), load_run_config(config_file, arguments))


def with_overrides(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """Return a configuration with other values. Raises ConfigError: they are not valid."""
    values = config.model_dump()
    for key, value in overrides.items():
        section, _, name = key.partition(".")
        values[section][name] = value
    return validate(values)


def _check_free(given: Sequence[str], own: Mapping[str, Any]) -> None:
    """Raise ConfigError if the user sets a key that the study would set otherwise, and so ignore."""
    for key, value in own.items():
        typed = [argument for argument in given if argument.partition("=")[0] == key]
        if typed and key != LOG_EVERY and typed != to_arguments({key: value}):
            raise ConfigError(f"{typed[-1]}: the study sets {key} for each run: {OPTIONS.get(key, 'leave it out')}")


def to_arguments(overrides: Mapping[str, Any]) -> list[str]:
    """Convert ``{"training.steps": 5}`` to ``["training.steps=5"]``, with values as YAML."""
    return [f"{key}={_as_yaml(value)}" for key, value in overrides.items()]


def _as_yaml(value: Any) -> str:
    return value if isinstance(value, str) else to_json(value)


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
