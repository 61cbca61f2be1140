"""Learning-rate schedules as factors of the peak learning rate."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from optim.config import OptimizerConfig


def learning_rate_factor(step: int, config: OptimizerConfig, total_steps: int) -> float:
    """Return the factor of the peak learning rate at an update.

    ``rsqrt`` is T5's 1/sqrt(max(step, warmup_steps)), scaled to 1 at ``warmup_steps``: with the peak 0.01 and 10k
    steps, the paper's 1/sqrt(max(step, 10k)).

    Args:
        step: updates made before, from 0.
        config: names the schedule.
        total_steps: where linear and cosine decay end, unless ``config.decay_steps`` is set.
    """
    if step < config.warmup_steps:
        return 1.0 if config.warmup == "constant" else (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "rsqrt":
        return (config.warmup_steps / step) ** 0.5
    end = config.decay_steps or total_steps
    progress = min(1.0, (step - config.warmup_steps) / (end - config.warmup_steps))
    left = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.floor + (1 - config.floor) * left


def make_schedule(optimizer: Optimizer, config: OptimizerConfig, total_steps: int) -> LambdaLR:
    """Return the configured schedule; one ``step()`` per update."""
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, config, total_steps))
