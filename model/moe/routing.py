"""The result of routing, common to all gatings, and the buffers it defines.

Shape suffixes: N = choices of a token, G = groups, S = tokens of a group, E = experts, C = capacity slots of an expert
and group, T = G * S tokens, X = E * G queues (one per expert and group), K = E * C capacity slots of a group.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from model.moe.dispatch import tokens_of_rows


class Choices(NamedTuple):
    """The decision of a gating: the experts of each token, most probable first."""

    expert_NGS: Tensor  # int64; an expert occurs at most once per token
    position_NGS: Tensor  # int64, capacity slot in the expert's queue of the group, from 0; defined where kept
    kept_NGS: Tensor  # bool, whether the choice has a capacity slot
    gate_NGS: Tensor  # float32, weight in the output; exactly 0, and without gradient, where not kept
    requested_NGS: Tensor | None = None  # bool, whether the choice asks for a capacity slot; None: experts choose


@dataclass(frozen=True)
class Routing:
    """``Choices`` of a sparse layer with its capacity and router losses."""

    expert_NGS: Tensor
    position_NGS: Tensor
    kept_NGS: Tensor
    gate_NGS: Tensor
    capacity: int  # capacity slots per expert and group
    num_experts: int
    load_balance_loss: Tensor  # float32 scalar, L_B
    router_z_loss: Tensor  # float32 scalar, L_Z
    max_logit: Tensor  # float32 scalar without gradient, largest router logit of the real tokens
    real_tokens: Tensor  # int64 scalar
    requested_NGS: Tensor | None = None
    rows: tuple[Tensor, Tensor] | None = None  # ``slots()`` and its inverse, where the gating computes them

    def buffer(self) -> tuple[Tensor, Tensor]:
        """Return ``slots()``, and the token of each row of that buffer, as ``tokens_of_rows`` gives it."""
        if self.rows is not None:
            return self.rows
        slot_NT = self.slots()
        return slot_NT, tokens_of_rows(slot_NT, self.num_experts * self.kept_NGS.shape[1] * self.capacity)

    def slots(self) -> Tensor:
        """Return each choice's row of a buffer laid out ``[E, G, C]``, int64 ``[N, T]``; ``E * G * C`` if not kept."""
        if self.rows is not None:
            return self.rows[0]
        slot_NGS = self._queues() * self.capacity + self.position_NGS
        end = self.num_experts * self.kept_NGS.shape[1] * self.capacity
        return torch.where(self.kept_NGS, slot_NGS, end).flatten(1).contiguous()

    def ragged_slots(self) -> tuple[Tensor, Tensor]:
        """Return each choice's row of a buffer without empty rows, sorted by expert, then group, then position.

        Returns:
            Row of each choice, int64 ``[N, T]`` (the number of rows if not kept); rows of each expert, int64 ``[E]``.
        """
        queue_NGS = self._queues()
        groups = self.kept_NGS.shape[1]
        count_X = torch.zeros(self.num_experts * groups, dtype=torch.int64, device=queue_NGS.device)
        count_X.scatter_add_(0, queue_NGS.flatten(), self.kept_NGS.flatten().long())
        end_X = count_X.cumsum(0)
        slot_NGS = (end_X - count_X)[queue_NGS] + self.position_NGS
        return torch.where(self.kept_NGS, slot_NGS, end_X[-1]).flatten(1).contiguous(), count_X.view(-1, groups).sum(-1)

    def _queues(self) -> Tensor:
        """Return the queue of each choice, ``expert * G + group``, int64 ``[N, G, S]``."""
        groups = self.expert_NGS.shape[1]
        return self.expert_NGS * groups + torch.arange(groups, device=self.expert_NGS.device).unsqueeze(-1)

    def dense_combine(self) -> Tensor:
        """Return the combine tensor of the paper's code, float32 ``[G, S, E, C]``; for tests and analysis only."""
        choices, groups, size = self.expert_NGS.shape
        combine_GSK = self.gate_NGS.new_zeros(groups, size, self.num_experts * self.capacity)
        slot_NGS = torch.where(self.kept_NGS, self.expert_NGS * self.capacity + self.position_NGS, 0)
        for n in range(choices):
            combine_GSK.scatter_add_(-1, slot_NGS[n].unsqueeze(-1), self.gate_NGS[n].unsqueeze(-1))
        return combine_GSK.view(groups, size, self.num_experts, self.capacity)

    def dropped_tokens(self) -> Tensor:
        """Count the real tokens that no expert processes, int64 scalar; padding is never kept."""
        return self.real_tokens - self.kept_NGS.any(dim=0).sum()
