"""The terms of the objective, averaged over micro-batches and ranks."""

import deepspeed.comm as dist
import torch
from torch import Tensor

from model.config import StMoeConfig
from model.st_moe import StMoeOutput

MEANS = (
    "loss",
    "cross_entropy",
    "load_balance_loss",
    "router_z_loss",
    "output_z_loss",
    "dropped_fraction",
)
MAXIMA = ("max_router_logit",)
COEFFICIENTS = {
    "load_balance_loss": "load_balance_coefficient",
    "router_z_loss": "router_z_coefficient",
    "output_z_loss": "output_z_coefficient",
}


class LossTerms:
    """Mean of the objective's terms, and the largest of the maxima, over micro-batches and, in ``reduce``, ranks."""

    def __init__(self) -> None:
        self.means: list[Tensor] = []
        self.maxima: list[Tensor] = []

    def add(self, output: StMoeOutput) -> None:
        """Keep the scalars of one micro-batch, on the device."""
        self.means.append(torch.stack([output[name].detach().float() for name in MEANS]))
        self.maxima.append(torch.stack([output[name].detach().float() for name in MAXIMA]))

    def reduce(self, config: StMoeConfig) -> dict[str, float]:
        """Return unweighted terms under their own names and weighted ones with ``_weighted``; two small all-reduces."""
        mean, largest = torch.stack(self.means).double().mean(0), torch.stack(self.maxima).double().amax(0)
        dist.all_reduce(mean)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        values = dict(zip(MEANS, (mean / dist.get_world_size()).tolist(), strict=True))
        values |= dict(zip(MAXIMA, largest.tolist(), strict=True))
        for name, coefficient in COEFFICIENTS.items():
            values[f"{name}_weighted"] = getattr(config, coefficient) * values[name]
        return values
