"""Pairs of runs that differ only in the variant."""

from collections.abc import Sequence
from typing import NamedTuple

from studies.runner.runs import Result


class Pair(NamedTuple):
    """Validation metrics of two variants at the same seed."""

    seed: int
    cross_entropy: tuple[float, float]  # nats per target token
    router_z_loss: tuple[float, float]  # mean (logsumexp of the router logits)^2, unweighted


def pairs(results: Sequence[Result], first: str, second: str) -> list[Pair]:
    """Pair two variants at the seeds at which both finished, stable or not; sorted by seed."""
    complete = {(r.variant, r.seed): r.metrics for r in results if {"cross_entropy", "router_z_loss"} <= set(r.metrics)}
    found = []
    for (variant, seed), one in complete.items():
        other = complete.get((second, seed))
        if variant == first and other is not None:
            found.append(Pair(seed, *((one[key], other[key]) for key in ("cross_entropy", "router_z_loss"))))
    return sorted(found, key=lambda pair: pair.seed)
