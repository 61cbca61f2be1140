"""The variants: what each changes in the base configuration, in which table it stands, and the paper's results.

Zoph et al. 2022, section 5 and appendices C, D and H. The settings are absolute: the one that the base configuration
has already is the baseline itself, and is not trained twice. The paper's qualities are of sparse models with the FLOPs
of T5-Large, after 100,000 steps.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from studies.runner.runs import with_overrides
from training.config.run import RunConfig
from training.planning.cost import width_of_equal_flops

Overrides = dict[str, Any]
Change = Callable[[RunConfig], Overrides]
BASELINE, DENSE = "baseline", "dense"
EVALUATED = (0.75, 1.0, 1.25, 2.0, 3.0)  # capacity factors at which each model of the capacity table is evaluated

CAPACITY, PRIORITIES, EXPERTS, EXTRA = "capacity", "priorities", "experts", "extra"
BIAS, REQUESTS, FREQUENCY, EQUAL, LOSS = "bias", "requests", "frequency", "equal", "loss"
TABLES: Mapping[str, str] = {
    CAPACITY: "Capacity factors and number of choices (section 5, tables 9-11)",
    EXPERTS: "Number of experts (section 5)",
    EXTRA: "Extra dense feed-forward at each sparse layer (appendix C)",
    BIAS: "Bias in the feed-forwards (appendix C)",
    PRIORITIES: "Batch prioritized routing (appendix D); train and eval capacity factor are the same",
    REQUESTS: "Requests for an expert after the best (appendix H)",
    FREQUENCY: "Frequency of sparse layers",
    EQUAL: "Equal FLOPs: the feed-forwards of each are as wide as the baseline's FLOPs allow",
    LOSS: "Router z-loss (section 3)",
}


@dataclass(frozen=True)
class Variant:
    """One point of the design space.

    Args:
        title: name in the tables.
        table: key of ``TABLES``; every table begins with the baseline.
        change: returns the overrides of the base configuration.
        factors: capacity factors of evaluation at which it stands in the table; none: the configuration's.
        paper: the paper's negative log perplexity by capacity factor of evaluation; None for the key: its only figure.
    """

    title: str
    table: str
    change: Change
    factors: tuple[float, ...] = ()
    paper: Mapping[float | None, float] = field(default_factory=dict)


def _set(**keys: Any) -> Change:
    """Set keys of the model section, and as many expert-parallel ranks as can share the experts."""

    def change(config: RunConfig) -> Overrides:
        overrides: Overrides = {f"model.{key}": value for key, value in keys.items()}
        if "num_experts" in keys:
            size = config.parallel.expert_parallel_size
            overrides["parallel.expert_parallel_size"] = (
                math.gcd(size, keys["num_experts"]) if keys["num_experts"] else 1
            )
        return overrides

    return change


def _at_equal_flops(change: Change) -> Change:
    """Make the feed-forwards of a variant as wide as gives it the FLOPs of the base configuration."""

    def changed(config: RunConfig) -> Overrides:
        overrides = change(config)
        width = width_of_equal_flops(with_overrides(config, overrides), config)
        return overrides | {"model.d_ff": width}

    return changed


def _twice_as_long(change: Change) -> Change:
    """Train a variant for twice as many steps; a decay of the learning rate ends with them."""

    def changed(config: RunConfig) -> Overrides:
        return change(config) | {"training.steps": 2 * config.training.steps}

    return changed


def _choices(top_n: int, factor: float, paper: Mapping[float | None, float]) -> Variant:
    change = _set(top_n=top_n, train_capacity_factor=factor)
    return Variant(f"Top-{top_n}, train CF {factor:g}", CAPACITY, change, EVALUATED, paper)


def _prioritized(factor: float, paper: float, *, batch_prioritized: bool) -> Variant:
    title = f"Top-1, CF {factor:g}{', prioritized' if batch_prioritized else ''}"
    change = _set(top_n=1, train_capacity_factor=factor, batch_prioritized=batch_prioritized)
    return Variant(title, PRIORITIES, change, (factor,), {factor: paper} if paper else {})


# The most informative first: an incomplete study then answers the larger questions.
VARIANTS: Mapping[str, Variant] = {
    BASELINE: Variant("Baseline", CAPACITY, _set(), EVALUATED),  # the paper's figures: of the setting that it has
    DENSE: Variant("Dense", EQUAL, _at_equal_flops(_set(num_experts=0)), (), {None: -1.474}),
    "z_loss_none": Variant("Without", LOSS, _set(router_z_coefficient=0.0)),
    "dense_twice": Variant("Dense, twice the steps", EQUAL, _twice_as_long(_at_equal_flops(_set(num_experts=0)))),
    "top1_cf1.25": _choices(1, 1.25, {1.25: -1.378, 2.0: -1.373}),
    "experts_64": Variant("64 experts", EXPERTS, _set(num_experts=64)),
    "experts_4": Variant("4 experts", EXPERTS, _set(num_experts=4)),
    "extra_after": Variant("After it", EXTRA, _set(extra_feed_forward="after"), (), {None: -1.369}),
    "bias_multiplicative": Variant(
        "Multiplicative", BIAS, _set(feed_forward_bias="multiplicative"), (), {None: -1.361}
    ),
    "bpr_cf0.75": _prioritized(0.75, -1.409, batch_prioritized=True),
    "top1_cf0.75": _choices(1, 0.75, {0.75: -1.428, 2.0: -1.404}),
    "top2_cf2": _choices(2, 2.0, {2.0: -1.360, 3.0: -1.359}),
    "top3_cf2": _choices(3, 2.0, {2.0: -1.360, 3.0: -1.356}),
    "sparse_step_1": Variant("Every block", FREQUENCY, _set(sparse_step=1)),
    "bpr_cf0.5": _prioritized(0.5, -1.433, batch_prioritized=True),
    "plain_cf0.5": _prioritized(0.5, 0.0, batch_prioritized=False),
    "top2_cf0.75": _choices(2, 0.75, {0.75: -1.424, 2.0: -1.402}),
    "bias_additive": Variant("Additive", BIAS, _set(feed_forward_bias="additive"), (), {None: -1.371}),
    "extra_before": Variant("Before it", EXTRA, _set(extra_feed_forward="before"), (), {None: -1.369}),
    "extra_none": Variant("None", EXTRA, _set(extra_feed_forward="none"), (), {None: -1.383}),
    "experts_16": Variant("16 experts", EXPERTS, _set(num_experts=16)),
    "extra_after_equal": Variant("Extra after", EQUAL, _at_equal_flops(_set(extra_feed_forward="after"))),
    "top2_cf2_equal": Variant("Top-2, train CF 2", EQUAL, _at_equal_flops(_set(top_n=2, train_capacity_factor=2.0))),
    "top3_cf2_equal": Variant("Top-3, train CF 2", EQUAL, _at_equal_flops(_set(top_n=3, train_capacity_factor=2.0))),
    "top2_cf1.25_equal": Variant(
        "Top-2, train CF 1.25", EQUAL, _at_equal_flops(_set(top_n=2, train_capacity_factor=1.25))
    ),
    "sparse_step_1_equal": Variant("Every block sparse", EQUAL, _at_equal_flops(_set(sparse_step=1))),
    "top1_cf1": _choices(1, 1.0, {1.0: -1.397, 2.0: -1.384}),
    "top2_cf1": _choices(2, 1.0, {1.0: -1.392, 2.0: -1.378}),
    "top2_cf1.25": _choices(2, 1.25, {1.25: -1.375, 2.0: -1.369}),
    "bpr_cf1": _prioritized(1.0, -1.386, batch_prioritized=True),
    "bpr_cf1.25": _prioritized(1.25, -1.376, batch_prioritized=True),
    "plain_cf0.75": _prioritized(0.75, -1.428, batch_prioritized=False),
    "plain_cf1": _prioritized(1.0, -1.397, batch_prioritized=False),
    "plain_cf1.25": _prioritized(1.25, -1.378, batch_prioritized=False),
    "second_all": Variant("Always", REQUESTS, _set(second_policy="all")),
    "second_none": Variant("Never", REQUESTS, _set(second_policy="none")),
    "second_threshold": Variant("If its gate exceeds 0.2", REQUESTS, _set(second_policy="threshold")),
    "threshold_0.2_cf3": Variant(
        "Threshold 0.2, CF 3", REQUESTS, _set(second_threshold=0.2, train_capacity_factor=3.0), (3.0,), {3.0: -1.354}
    ),
    "threshold_0.05_cf3": Variant(
        "Threshold 0.05, CF 3", REQUESTS, _set(second_threshold=0.05, train_capacity_factor=3.0), (3.0,), {3.0: -1.356}
    ),
    "sparse_step_4": Variant("Every fourth block", FREQUENCY, _set(sparse_step=4)),
    "sparse_step_2": Variant("Every second block", FREQUENCY, _set(sparse_step=2)),
    "bias_none": Variant("None", BIAS, _set(feed_forward_bias="none"), (), {None: -1.369}),
}
