"""Capacity of experts and size of routing groups, from a configuration alone. Imports no torch."""

from model.architecture import Architecture


def expert_capacity(config: Architecture, size: int, *, training: bool, decoder: bool = False) -> int:
    """Return the capacity slots per expert in a group of ``size`` tokens.

    As in the paper's code ``max(min(size, int(size * CF / E)), min_capacity)``, not multiplied by top_n; for flaxformer
    ``max(round(size * CF / E), min_capacity)``, with halves rounded to even as there; for ``capacity: dropless``
    ``size``, enough for any routing.
    """
    if config.capacity == "dropless":
        return size
    slots = size * (config.train_capacity_factor if training else config.eval_capacity_factor) / config.num_experts
    flaxformer = config.stack_gating(decoder=decoder) == "flaxformer"
    return max(round(slots) if flaxformer else min(size, int(slots)), config.min_capacity)


def group_tokens(tokens: int, group_size: int) -> int:
    """Return the tokens per routing group: the largest divisor of ``tokens`` that is at most ``group_size``."""
    return next(size for size in range(min(tokens, group_size), 0, -1) if tokens % size == 0)
