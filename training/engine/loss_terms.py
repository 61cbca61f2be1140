"""The terms of the objective, averaged over micro-batches and ranks."""

import math
from collections.abc import Sequence

import deepspeed.comm as dist
import torch
from torch import Tensor

from model.config import StMoeConfig
from model.losses import IGNORED_LABEL, cross_entropy_and_z
from model.st_moe import StMoeOutput
from training.engine.shares import Reduced, Share, reduce_shares, share

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
    ``domains``: of each example of known domain (domain, nats, target tokens), float64 [examples, 3] per micro-batch.
    """

    def __init__(self) -> None:
        self.means: list[Tensor] = []
        self.maxima: list[Tensor] = []
        self.routers: list[Tensor] = []
        self.domains: list[Tensor] = []

    def add(self, output: StMoeOutput) -> None:
        """Keep the scalars of one micro-batch, on the device."""
        self.means.append(torch.stack([output[name].detach().float() for name in MEANS]))
        self.maxima.append(torch.stack([output[name].detach().float() for name in MAXIMA]))
        if output.router_statistics is not None:
            self.routers.append(output.router_statistics)

    def add_domains(self, output: StMoeOutput, labels_BM: Tensor, domains_B: Tensor) -> None:
        """Keep the cross-entropy of each example of one micro-batch, on the device.

        Args:
            output: of the model, with logits [B, M, V].
            labels_BM: int64.
            domains_B: index of each example's domain, int64.
        """
        logits_BMV = output.logits
        assert logits_BMV is not None
        one = logits_BMV.new_ones((), dtype=torch.float32)
        # Each by itself, so that the sums of a domain do not depend on which examples share a batch.
        nats = [cross_entropy_and_z(logits_BMV[b : b + 1], labels_BM[b : b + 1], one)[0] for b in range(len(labels_BM))]
        tokens_B = (labels_BM != IGNORED_LABEL).sum(1)
        self.domains.append(torch.stack((domains_B.double(), torch.stack(nats).double(), tokens_B.double()), 1))

    def domain_share(self, count: int) -> Share:
        """Return this rank's nats and target tokens of ``count`` domains."""
        of_examples = torch.cat(self.domains).cpu()
        totals = torch.zeros(2, count, dtype=torch.float64)
        totals.index_add_(1, of_examples[:, 0].long(), of_examples[:, 1:].T)
        return share(totals.flatten())

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

    def reduce(self, config: StMoeConfig, domains: Sequence[str] = ()) -> dict[str, float]:
        """Return ``read`` of all ranks' shares and the cross-entropy of each of ``domains``; one collective."""
        shares = [self.share()] + ([self.domain_share(len(domains))] if domains else [])
        reduced, *of_domains = reduce_shares(shares, self.means[0].device)
        values = self.read(reduced, config)
        for found in of_domains:
            nats, tokens = found.sums[: len(domains)], found.sums[len(domains) :]
            for name, total, count in zip(domains, nats, tokens, strict=True):
                values[f"cross_entropy/{name}"] = total / count
        return values


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
