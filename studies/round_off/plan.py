"""The runs of the round-off study: training from router logits of several sizes, with and without router z-loss."""

import argparse
from dataclasses import dataclass
from typing import Any

from studies.runner.options import positive
from training.config.errors import ConfigError
from training.config.run import RunConfig

Planned = tuple[str, int, dict[str, Any]]  # variant, seed, overrides
FACTORS = [1.0, 10.0, 100.0, 1000.0]
Z_COEFFICIENT = 1e-3  # the paper's c_Z


@dataclass(frozen=True)
class Start:
    """How the runs of a variant start and train.

    Args:
        factor: of the routers' initial weights, ``model.router_initializer_factor``.
        z_loss: whether the router z-loss is on.
        precision: ``model.router_precision``, bf16 or fp32.
    """

    factor: float
    z_loss: bool
    precision: str = "bf16"

    @property
    def name(self) -> str:
        """The variant's name, such as ``x100_z_loss``."""
        return f"x{self.factor:g}" + "_z_loss" * self.z_loss + "_fp32" * (self.precision == "fp32")

    @property
    def title(self) -> str:
        """The variant's name in tables and pictures."""
        return f"x {self.factor:g}, {'with' if self.z_loss else 'without'} z-loss, {self.precision}"

    @property
    def overrides(self) -> dict[str, Any]:
        """The settings of the variant."""
        return {
            "model.router_initializer_factor": self.factor,
            "model.router_z_coefficient": Z_COEFFICIENT if self.z_loss else 0.0,
            "model.router_precision": self.precision,
        }


def starts(arguments: argparse.Namespace) -> list[Start]:
    """Return the variants that the options ask for, small logits first.

    Raises:
        ConfigError: a factor is not positive, or 1 is missing, with whose quality the others are compared.
    """
    for option in ("factors", "fp32_factors"):
        for factor in getattr(arguments, option):
            if not 0 < factor < float("inf"):
                raise ConfigError(f"--{option.replace('_', '-')} {factor:g} must be greater than 0")
    factors = sorted(set(arguments.factors))
    if 1.0 not in factors:
        given = " ".join(f"{factor:g}" for factor in factors)
        raise ConfigError(f"--factors {given}: add 1, the small logits with whose quality the others are compared")
    in_bf16 = [Start(factor, z_loss) for factor in factors for z_loss in (False, True)]
    return in_bf16 + [Start(factor, False, "fp32") for factor in sorted(set(arguments.fp32_factors))]


def plan(arguments: argparse.Namespace, config: RunConfig) -> list[Planned]:
    """Return variant, seed and overrides of every run, seed by seed, so that an incomplete study compares variants.

    Raises:
        ConfigError: an option is out of range, or the model is dense.
    """
    positive(arguments, "seeds")
    if not config.architecture().num_experts:
        raise ConfigError("model.num_experts = 0: the study is of routers; set 2 or more")
    variants = starts(arguments)
    return [(start.name, seed, start.overrides) for seed in range(arguments.seeds) for start in variants]
