"""Mixtures of tasks: how often each is drawn."""

from collections.abc import Mapping

from data.sources.retry import DataError

CAP = 65_536  # examples of a task that count at most, in ST-MoE's fine-tuning (T5 has 2 ** 19 in pretraining)


def mixing_rates(sizes: Mapping[str, int], cap: int | None = CAP, temperature: float = 1.0) -> dict[str, float]:
    """Return the share of the examples that each task has in a mixture.

    A task's share is in proportion to ``min(size, cap) ** (1 / temperature)`` (Raffel et al. 2020, section 3.5.2):
    temperature 1 is examples-proportional mixing with a cap, a high temperature approaches equal shares.

    Args:
        sizes: training examples by task.
        cap: examples of a task that count at most; None for all.
        temperature: at least 1.

    Returns:
        Shares by task, which add up to 1.

    Raises:
        DataError: a task without examples, a cap below 1, a temperature below 1.
    """
    for name, size in sizes.items():
        if size < 1:
            raise DataError(f"task {name} has no training examples: leave it out of the mixture")
    if cap is not None and cap < 1:
        raise DataError(f"the cap {cap} of a mixture must be at least 1 example")
    if not temperature >= 1.0:
        raise DataError(f"the temperature {temperature} of a mixture must be at least 1")
    counted = {
        name: float(size if cap is None else min(size, cap)) ** (1.0 / temperature) for name, size in sizes.items()
    }
    total = sum(counted.values())
    return {name: value / total for name, value in counted.items()}
