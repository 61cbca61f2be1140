"""Expert-choice routing (Zhou et al. 2022, arXiv 2202.09368): each expert selects its most probable tokens.

Loads are equal by construction, and a token may be selected by any number of experts. An expert's selection depends on
all tokens of the group, which in a decoder would leak future tokens: for the encoder only.

Shape suffixes: N = choices of a token, G = groups, S = tokens of a group, E = experts, C = capacity slots.
"""

import torch
from torch import Tensor

from model.layers.values import has_values
from model.moe.routing import Choices


def choose_by_expert(probs_GSE: Tensor, mask_GS: Tensor, capacity: int) -> Choices:
    """Let each expert select its ``capacity`` most probable real tokens, ties from left to right.

    A token's choices are the experts that selected it, most probable first; its gates are the raw probabilities. N is
    the largest number of choices of any token, at least 1; on a GPU, where reading that number would wait for it, E.

    Args:
        probs_GSE: router probabilities, float32; they sum to 1 over the experts.
        mask_GS: True for real tokens. Padding is never selected: with too few real tokens, slots stay empty.
        capacity: capacity slots per expert and group.
    """
    exact_GSE = probs_GSE.detach()
    ranked = exact_GSE.masked_fill(~mask_GS.unsqueeze(-1), -1.0).sort(dim=1, descending=True, stable=True)
    token_GCE, real_GCE = ranked.indices[:, :capacity], ranked.values[:, :capacity] >= 0
    taken_GSE = torch.zeros_like(exact_GSE, dtype=torch.bool).scatter_(1, token_GCE, real_GCE)
    slot_C1 = torch.arange(token_GCE.shape[1], device=token_GCE.device).unsqueeze(-1)
    slot_GSE = token_GCE.new_zeros(exact_GSE.shape).scatter_(1, token_GCE, slot_C1.expand_as(token_GCE))

    unread = exact_GSE.is_cuda or not has_values(exact_GSE)
    choices = exact_GSE.shape[-1] if unread else max(1, int(taken_GSE.sum(dim=-1).max()))
    by_gate_GSE = exact_GSE.masked_fill(~taken_GSE, -1.0).argsort(dim=-1, descending=True, stable=True)
    expert_GSN = by_gate_GSE[..., :choices]
    kept_GSN = taken_GSE.gather(-1, expert_GSN)
    gate_GSN = torch.where(kept_GSN, probs_GSE.gather(-1, expert_GSN), 0.0)
    position_GSN = slot_GSE.gather(-1, expert_GSN)
    return Choices(*(x.movedim(-1, 0).contiguous() for x in (expert_GSN, position_GSN, kept_GSN, gate_GSN)))
