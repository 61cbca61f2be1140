"""Where tokens go: the result of every gating, and its layouts.

Shape suffixes: N = choices of a token, G = groups, S = tokens of a group, E = experts, C = capacity, T = G * S tokens,
X = E * G queues, R = rows.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Choices(NamedTuple):
    """The experts that each token is matched with, the best first; what a gating decides."""

    expert_NGS: Tensor  # int64; a token has an expert at most once
    position_NGS: Tensor  # int64, its place among the expert's rows of the group, from 0; meaningful where kept
    kept_NGS: Tensor  # bool, has a place
    gate_NGS: Tensor  # float32, weight in the output; exactly 0, and without gradient, where not kept


@dataclass(frozen=True)
class Routing:
    """Where each token goes, with what weight, and what the router is charged for it."""

    expert_NGS: Tensor
    position_NGS: Tensor
    kept_NGS: Tensor
    gate_NGS: Tensor
    capacity: int  # places per expert and group
    num_experts: int
    load_balance_loss: Tensor  # float32 scalar, L_B
    router_z_loss: Tensor  # float32 scalar, L_Z

    def slots(self) -> Tensor:
        """Row of each choice in the buffer laid out ``[E, G, C]``, int64 ``[N, T]``; ``E * G * C`` where not kept."""
        slot_NGS = self._queues() * self.capacity + self.position_NGS
        nowhere = self.num_experts * self.kept_NGS.shape[1] * self.capacity
        return torch.where(self.kept_NGS, slot_NGS, nowhere).flatten(1)

    def ragged_slots(self) -> tuple[Tensor, Tensor]:
        """The same without empty rows: sorted by expert, then group, then place.

        Returns:
            Row of each choice, int64 ``[N, T]``, R where not kept; rows of each expert, int64 ``[E]``, in all R.
        """
        queue_NGS = self._queues()
        groups = self.kept_NGS.shape[1]
        count_X = torch.zeros(self.num_experts * groups, dtype=torch.int64, device=queue_NGS.device)
        count_X.scatter_add_(0, queue_NGS.flatten(), self.kept_NGS.flatten().long())
        end_X = count_X.cumsum(0)
        slot_NGS = (end_X - count_X)[queue_NGS] + self.position_NGS
        return torch.where(self.kept_NGS, slot_NGS, end_X[-1]).flatten(1), count_X.view(-1, groups).sum(-1)

    def _queues(self) -> Tensor:
        """The queue of each choice, ``expert * G + group``, int64 ``[N, G, S]``."""
        groups = self.expert_NGS.shape[1]
        return self.expert_NGS * groups + torch.arange(groups, device=self.expert_NGS.device).unsqueeze(-1)

    def dense_combine(self) -> Tensor:
        """The combine tensor of the paper's code, float32 ``[G, S, E, C]``: for tests and analysis only."""
        choices, groups, size = self.expert_NGS.shape
        combine_GSX = self.gate_NGS.new_zeros(groups, size, self.num_experts * self.capacity)
        place_NGS = torch.where(self.kept_NGS, self.expert_NGS * self.capacity + self.position_NGS, 0)
        for n in range(choices):
            combine_GSX.scatter_add_(-1, place_NGS[n].unsqueeze(-1), self.gate_NGS[n].unsqueeze(-1))
        return combine_GSX.view(groups, size, self.num_experts, self.capacity)

    def dropped_tokens(self, mask_GS: Tensor) -> Tensor:
        """Real tokens that reach no expert, int64 scalar."""
        return (mask_GS.bool() & ~self.kept_NGS.any(dim=0)).sum()
