"""The terms of the objective, averaged over micro-batches and ranks."""

import math

import deepspeed.comm as dist
import torch
from torch import Tensor

from model.config import StMoeConfig
from model.st_moe import StMoeOutput
from training.engine.shares import Reduced, Share, reduce_shares

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
    """Mean of the objective's terms, and the largest of the maxima, over micro-batches and, in ``reduce``, ranks.

    ``routers``: ``StMoeOutput.router_statistics`` of the micro-batches whose routers were observed.
    """

    def __init__(self) -> None:
        self.means: list[Tensor] = []
        self.maxima: list[Tensor] = []
        self.routers: list[Tensor] = []

    def add(self, output: StMoeOutput) -> None:
        """Keep the scalars of one micro-batch, on the device."""
        self.means.append(torch.stack([output[name].detach().float() for name in MEANS]))
        self.maxima.append(torch.stack([output[name].detach().float() for name in MAXIMA]))
        if output.router_statistics is not None:
            self.routers.append(output.router_statistics)

    def share(self) -> Share:
        """Return this rank's share of what ``read`` returns."""
        mean = torch.stack(self.means).double().mean(0) / dist.get_world_size()
        return Share(mean, torch.stack(self.maxima).double().amax(0))

    def read(self, reduced: Reduced, config: StMoeConfig) -> dict[str, float]:
        """Return unweighted terms under their own names, weighted ones with ``_weighted``, and the perplexity."""
        values = dict(zip((*MEANS, *MAXIMA), (*reduced.sums, *reduced.maxima), strict=True))
        for name, coefficient in COEFFICIENTS.items():
            values[f"{name}_weighted"] = getattr(config, coefficient) * values[name]
        values["perplexity"] = _exp(values["cross_entropy"])
        return values

    def reduce(self, config: StMoeConfig) -> dict[str, float]:
        """Return ``read`` of all ranks' shares; one collective."""
        (reduced,) = reduce_shares([self.share()], self.means[0].device)
        return self.read(reduced, config)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
