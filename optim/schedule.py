"""Learning-rate schedules, as factors of the peak."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from optim.config import OptimizerConfig


def rsqrt_factor(step: int, warmup_steps: int, warmup: str) -> float:
    """T5's 1/sqrt(max(step, warmup_steps)), scaled to 1 at ``warmup_steps``.

    Args:
        step: updates already made, from 0.
        warmup_steps: where the decay begins.
        warmup: ``constant`` keeps 1 until there (SPEC: lr 0.01 = 1/sqrt(10k) for 10k steps); ``linear`` rises to it,
            beginning at 1 / warmup_steps.
    """
    if step < warmup_steps:
        return 1.0 if warmup == "constant" else (step + 1) / warmup_steps
    return (warmup_steps / step) ** 0.5


def make_schedule(optimizer: Optimizer, config: OptimizerConfig) -> LambdaLR:
    """The schedule that ``config`` asks for; one ``step()`` per update."""
    return LambdaLR(optimizer, lambda step: rsqrt_factor(step, config.warmup_steps, config.warmup))
