"""One run of a study: where it is, how far it came, and what came out. A run is a call of ``train.py``."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from studies.runner.divergence import Verdict, judge
from training.config.errors import ConfigError
from training.config.run import RunConfig, load_config

LOGGED_ROWS = 100  # at least, where the run has as many steps: a spike between two rows is not seen


@dataclass(frozen=True)
class Run:
    """A run of ``variant`` with ``seed``.

    Args:
        config_file: what ``train.py --config`` is given.
        overrides: ``section.key=value`` arguments; they name the run's folder too.
        config: what both give.
    """

    variant: str
    seed: int
    config_file: str
    overrides: tuple[str, ...]
    config: RunConfig

    @property
    def name(self) -> str:
        """Of its folder and its log."""
        return self.config.training.name

    @property
    def dir(self) -> Path:
        """The run's folder."""
        return self.config.run_dir

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.dir.parent.parent / "logs" / f"{self.name}.log"

    def rows(self) -> list[dict[str, Any]]:
        """All rows of its metrics so far."""
        path = self.dir / "metrics.jsonl"
        if not path.is_file():
            return []
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:  # the line that a kill cut off
                continue
        return rows

    def can_resume(self) -> bool:
        """Whether it left a checkpoint."""
        return (self.dir / "checkpoints" / "latest").is_file()

    def result(self) -> "Result":
        """What came out, from the run's files alone: the same whoever ran it, in however many parts."""
        rows = self.rows()
        training = [row for row in rows if "split" not in row]
        verdict = judge(training, self.config.training.steps)
        stop = next((row for row in rows if row.get("decision") == "stop"), None)
        if stop is not None and verdict.stable:
            verdict = Verdict(int(stop["step"]), stop["reason"].partition(",")[0], verdict.spikes)
        last = next((row for row in reversed(rows) if row.get("split") == "validation"), None)
        complete = (self.dir / "summary.json").is_file()
        over = complete or stop is not None
        if last is None or not complete:
            last = {}
        return Result(
            variant=self.variant,
            seed=self.seed,
            status="unfinished" if not over else "stable" if verdict.stable else "diverged",
            verdict=verdict,
            quality=_negative(last.get("cross_entropy")),
            router_z_loss=last.get("router_z_loss"),
            max_router_logit=last.get("max_router_logit"),
        )

    def clear_the_way(self) -> None:
        """Remove what an attempt without a checkpoint left, which ``train.py`` would not overwrite."""
        if self.dir.exists() and not self.can_resume():
            shutil.rmtree(self.dir)

    def check_same(self) -> None:
        """Refuse a folder whose run had other settings. Raises ConfigError."""
        path = self.dir / "config.yaml"
        if not path.is_file():
            return
        there = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        for section, keys in self.config.model_dump().items():
            for key, value in keys.items():
                before = there.get(section, {}).get(key, value)  # an older version of the app may lack the key
                if before != value:
                    raise ConfigError(
                        f"{self.dir} holds a run with {section}.{key} = {before}, not {value}: set another --out"
                    )


@dataclass(frozen=True)
class Result:
    """What a run gave; figures on the held-out text after the last step, None where it did not get there."""

    variant: str
    seed: int
    status: Literal["stable", "diverged", "unfinished"]
    verdict: Verdict
    quality: float | None  # negative log perplexity: minus the cross-entropy, nats per target token
    router_z_loss: float | None  # mean (logsumexp of the router logits)^2, unweighted
    max_router_logit: float | None


def make_run(
    config_file: str, arguments: Sequence[str], variant: str, seed: int, out: Path, overrides: Mapping[str, Any]
) -> Run:
    """A run of a study with output folder ``out``: the config, the user's ``key=value`` arguments, then ``overrides``.

    What the study sets beside ``overrides``: ``training.seed`` (of initial weights and of all randomness in training;
    the order of the text is the same in all runs), one evaluation, at the end, rows often enough to see a spike, a
    gradient that is not finite ends the run, and no guard takes a run back from a spike.

    Raises:
        ConfigError: what they give is no valid configuration.
    """
    arguments = [*arguments, *to_arguments(overrides)]
    base = load_config(config_file, arguments)
    steps = base.training.steps
    own: dict[str, Any] = {
        "training.seed": seed,
        "training.eval_every": steps,
        "training.log_every": min(base.training.log_every, max(1, steps // LOGGED_ROWS)),
        "optimizer.non_finite": "stop",
        "guard.spike_threshold": 0.0,
        "training.output_dir": str(out / "runs"),
        "training.name": f"{variant}-{seed}",
    }
    arguments += to_arguments(own)
    return Run(variant, seed, config_file, tuple(arguments), load_config(config_file, arguments))


def to_arguments(overrides: Mapping[str, Any]) -> list[str]:
    """``{"training.steps": 5}`` → ``["training.steps=5"]``, values as YAML."""
    return [f"{key}={_as_yaml(value)}" for key, value in overrides.items()]


def _as_yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
