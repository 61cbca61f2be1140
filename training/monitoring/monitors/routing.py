"""The health of the routers: figures of every sparse layer, from the sums that ``model.moe.statistics`` makes.

Shape suffixes: L = sparse layers, K = numbers of a layer, E = experts, B = bins.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model.config import StMoeConfig
from model.moe.statistics import BINS, SUMS
from training.engine.loss_terms import LossTerms
from training.engine.shares import Reduced, Share, share
from training.monitoring.monitors.base import PassiveMonitor

DEAD_SHARE = 0.01  # of the uniform load: an expert below it is dead


class RouterHealth(PassiveMonitor):
    """Figures of every sparse layer in a logged step, and pictures of its load since the last row of ``routing``.

    Args:
        config: the model's.
    """

    def __init__(self, config: StMoeConfig):
        self.config, self.layers = config, config.sparse_layer_names()
        self.width = len(SUMS) + config.num_experts + BINS + 1
        self.load_state_dict({})

    def state_dict(self) -> dict[str, list[float]]:
        """Return what the next row of ``routing`` has so far, as plain JSON: sums by layer; nothing of none."""
        return dict(zip(self.layers, self.pictured.tolist(), strict=True)) if self.pictured.any() else {}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Resume from a ``state_dict`` of the same model."""
        nothing = [0.0] * (self.width - 1)
        rows = [state.get(layer, nothing) for layer in self.layers]
        self.pictured = torch.tensor(rows, dtype=torch.float64).view(len(self.layers), self.width - 1)

    def share(self, terms: LossTerms) -> Share:
        """Return the sums and the largest logsumexp of every layer over the step's micro-batches; zeros without any."""
        if not terms.routers:
            return share(torch.zeros(len(self.layers) * (self.width - 1)), torch.zeros(len(self.layers)))
        micro_LK = torch.stack(terms.routers)
        return Share(micro_LK[..., :-1].sum(0).flatten(), micro_LK[..., -1].amax(0))

    def columns(self, reduced: Reduced) -> dict[str, float]:
        """Return the columns of every layer; none of a step whose routers were not observed."""
        sums_LK = torch.tensor(reduced.sums, dtype=torch.float64).view(len(self.layers), self.width - 1)
        if not sums_LK.any():
            return {}
        self.pictured += sums_LK
        columns: dict[str, float] = {}
        for layer, sums_K, largest in zip(self.layers, sums_LK, reduced.maxima, strict=True):
            by_expert = self.config.stack_gating(decoder=layer.startswith("decoder")) == "expert_choice"
            figures = layer_figures(sums_K, self.config.num_experts, 1 if by_expert else self.config.top_n)
            if by_expert:
                del figures["dropped_first_choices"]
            figures["max_router_logsumexp"] = largest
            columns |= {f"{name}/{layer}": value for name, value in figures.items()}
        rows, served = (sums_LK[:, SUMS.index(name)].sum().item() for name in ("rows", "served_rows"))
        return columns | {"capacity_padding": _ratio(rows - served, rows)}

    def picture(self) -> dict[str, Any]:
        """Return the columns of a row of ``routing`` and begin the next; none if no step was observed."""
        if not self.pictured.any():
            return {}
        columns: dict[str, Any] = {}
        for layer, sums_K in zip(self.layers, self.pictured, strict=True):
            load_E = _load(sums_K, self.config.num_experts)
            columns[f"load/{layer}"] = (load_E / load_E.sum().clamp(min=1)).tolist()
            columns[f"probabilities/{layer}"] = [int(count) for count in sums_K[-BINS:]]
        self.load_state_dict({})
        return columns


def layer_figures(sums_K: Tensor, experts: int, choices: int) -> dict[str, float]:
    """Return the figures of one layer.

    Args:
        sums_K: as ``router_statistics`` returns them, added up, without the maximum.
        experts: E.
        choices: experts that a token may request; with 1 there are no figures of second choices.
    """
    of = dict(zip(SUMS, sums_K.tolist(), strict=False))
    tokens, calls, load_E = of["tokens"], of["calls"], _load(sums_K, experts)
    figures = {
        "dropped_fraction": _ratio(of["dropped_tokens"], tokens),
        "dropped_first_choices": _ratio(of["dropped_first_requests"], of["first_requests"]),
    }
    if choices > 1:
        figures["requested_second_choices"] = _ratio(of["other_requests"], tokens * (choices - 1))
        figures["dropped_second_choices"] = _ratio(of["dropped_other_requests"], of["other_requests"])
    return figures | {
        "router_entropy": _ratio(of["entropy"], tokens),
        "router_confidence": _ratio(of["confidence"], tokens),
        "router_logsumexp": _ratio(of["logsumexp"], tokens),
        "expert_load_cv": _ratio(load_E.std(correction=0).item(), load_E.mean().item()),
        "dead_experts": (load_E < DEAD_SHARE * load_E.mean()).sum().item(),
        "load_balance_loss": _ratio(of["load_balance_loss"], calls),
        "router_z_loss": _ratio(of["router_z_loss"], calls),
    }


def _load(sums_K: Tensor, experts: int) -> Tensor:
    return sums_K[len(SUMS) : len(SUMS) + experts]


def _ratio(part: float, whole: float) -> float:
    """A share; 0 of nothing, so that it can be drawn."""
    return part / whole if whole or math.isnan(whole) else 0.0
