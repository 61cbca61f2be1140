"""What rounding to bf16 must do to exponentials, gates and choices, derived from the spacing of its numbers.

A bf16 number has 8 significant bits: numbers in [2^e, 2^(e + 1)) are 2^(e - 7) apart. Rounding moves a number x by up
to half of that, which is |x| 2^-9 to |x| 2^-8. Since exp(x (1 + r)) = exp(x) exp(x r), the *relative* error of the
exponential is about |x r|: it grows with x.

Two logits with a margin m that round on a grid of spacing h end up k h apart, where k is one of the two integers next
to m / h; the larger one with the probability of the fraction. With k = 0 they have become equal, and the lower index
wins, which is the wrong one half of the time.

Shape suffixes: T = tokens, E = experts.
"""

from typing import NamedTuple

import torch
from torch import Tensor

SIGNIFICANT_BITS = 8
PAPER_LOGITS = (128.5, *[128.0] * 10)  # section 3.4 of the paper


class Predicted(NamedTuple):
    """What the law says of a router whose logits are rounded: means over tokens, see ``measure.compare``."""

    flips_first: float
    flips_second: float
    gate_error: float


def spacing(x: Tensor) -> Tensor:
    """Return the distance between neighboring bf16 numbers around ``x``, in the dtype of ``x``; 0 at 0."""
    exponent = torch.frexp(x).exponent - SIGNIFICANT_BITS
    return torch.where(x == 0, 0.0, torch.ldexp(torch.ones_like(x), exponent))


def worst_error_of_exp(x: Tensor) -> Tensor:
    """Return the largest relative error that exp(x) can have when x is rounded."""
    return torch.expm1(spacing(x) / 2)


def flip_probability(margin: Tensor, grid: Tensor) -> Tensor:
    """Return the probability that two numbers change their order when both are rounded on a grid of this spacing."""
    return (1 - margin / grid).clamp(min=0) / 2


def predict(logits_TE: Tensor) -> Predicted:
    """Predict what rounding the logits does to top-2 gating, whose first gate is the logistic function of the margin.

    A second expert that is exchanged for the third takes its gate with it. Each pair of logits is taken to be on the
    grid of the one that is larger in absolute value. Ties of three experts are not considered: the law is too low where
    the spacing is as large as the margins.

    Args:
        logits_TE: exact logits of three experts or more, float64.
    """
    first_T, second_T, third_T = logits_TE.topk(3, dim=-1).values.T
    grid_T, next_grid_T = (
        spacing(torch.maximum(a_T.abs(), b_T.abs())) for a_T, b_T in ((first_T, second_T), (second_T, third_T))
    )
    margin_T = first_T - second_T
    flips_T = flip_probability(margin_T, grid_T)
    exchanged_T = flip_probability(second_T - third_T, next_grid_T)
    gate_T, cells_T = margin_T.sigmoid(), margin_T / grid_T
    below_T, above_T = (((cells_T.floor() + step) * grid_T).sigmoid() for step in (0, 1))
    share_T = cells_T.frac()
    moved_T = (1 - share_T) * (gate_T - below_T) + share_T * (above_T - gate_T)
    return Predicted(
        flips_first=flips_T.mean().item(),
        flips_second=(flips_T + exchanged_T).mean().item(),
        gate_error=(moved_T + exchanged_T * (1 - gate_T)).mean().item(),
    )


def paper_example() -> tuple[float, float]:
    """Return the softmax output of the logit 128.5 beside ten of 128: exact, and after rounding the logits to bf16."""
    logits = torch.tensor(PAPER_LOGITS, dtype=torch.float64)
    exact, rounded = (x.softmax(0)[0].item() for x in (logits, logits.bfloat16().double()))
    return exact, rounded
