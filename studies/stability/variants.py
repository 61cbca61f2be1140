"""The variants of the stability study: the change of each to the baseline, and the paper's results.

Zoph et al. 2022, section 3 and tables 2-4: sparse models on a multilingual mixture, six seeds of the baseline and three
of each variant. The baseline is the configuration without router z-loss; every variant changes one thing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from training.config.errors import ConfigError
from training.config.run import RunConfig

Overrides = dict[str, Any]
BASELINE = "baseline"
BASELINE_OVERRIDES: Overrides = {"model.router_z_coefficient": 0.0}


class PaperFigures(NamedTuple):
    """A row of the paper's tables 2-4."""

    table: int  # 0: the baseline, which is in all three
    stable: int  # number of stable seeds
    seeds: int
    quality: float  # negative log perplexity, nats per token
    error: float  # standard error of the quality


@dataclass(frozen=True)
class Variant:
    """One technique.

    Args:
        title: name in the tables.
        change: returns the overrides that turn the baseline's configuration into the variant's.
        paper: results of the paper.
    """

    title: str
    change: Callable[[RunConfig], Overrides]
    paper: PaperFigures


def _set(key: str, value: float | bool) -> Callable[[RunConfig], Overrides]:
    return lambda _: {key: value}


def _relu_of_equal_size(config: RunConfig) -> Overrides:
    """Return overrides for ReLU with 1.5 times the width, which has the parameters and FLOPs of GEGLU.

    ReLU has two matrices in place of three.
    """
    width = config.model.d_ff  # type: ignore[attr-defined]
    if width * 3 % 4:
        raise ConfigError(
            f"model.d_ff = {width}: no_geglu needs an even width of 1.5 times that: set a multiple of 4, or remove "
            "no_geglu from --variants"
        )
    return {"model.feed_forward": "relu", "model.d_ff": width * 3 // 2}


VARIANTS: Mapping[str, Variant] = {
    BASELINE: Variant("Baseline", lambda _: {}, PaperFigures(0, 4, 6, -1.755, 0.02)),
    "no_geglu": Variant("Remove GEGLU", _relu_of_equal_size, PaperFigures(2, 3, 3, -1.849, 0.02)),
    "no_rms_scale": Variant(
        "Remove RMSNorm scale", _set("model.rms_norm_scale", False), PaperFigures(2, 3, 3, -2.020, 0.06)
    ),
    "input_jitter": Variant(
        "Input jitter (1e-2)", _set("model.router_jitter", 1e-2), PaperFigures(3, 3, 3, -1.777, 0.03)
    ),
    "dropout": Variant("Dropout (0.1)", _set("model.dropout_rate", 0.1), PaperFigures(3, 3, 3, -1.822, 0.11)),
    "update_clipping": Variant(
        "Update clipping (0.1)", _set("optimizer.update_clipping", 0.1), PaperFigures(4, 3, 3, -4.206, 0.17)
    ),
    "router_z_loss": Variant(
        "Router z-loss (1e-3)", _set("model.router_z_coefficient", 1e-3), PaperFigures(4, 3, 3, -1.741, 0.02)
    ),
}


def variant_overrides(name: str, config: RunConfig) -> Overrides:
    """Return all overrides of a variant of ``config``, those of the baseline first.

    Raises:
        ConfigError: the model is dense, or the variant equals the baseline.
    """
    if not config.architecture().num_experts:
        raise ConfigError("model.num_experts = 0: the study is of sparse models; set 2 or more")
    change = VARIANTS[name].change(config)
    for key, value in change.items():
        if key not in BASELINE_OVERRIDES and _get(config, key) == value:
            raise ConfigError(
                f"{key} = {value} already, so {name} equals the baseline: remove it from --variants, or set another "
                "value"
            )
    return BASELINE_OVERRIDES | change


def _get(config: RunConfig, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)
