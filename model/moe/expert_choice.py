"""Expert choice (Zhou et al. 2022, arXiv 2202.09368): each expert takes the tokens that are most probable for it.

Loads are equal by construction, a token may have any number of experts, and which tokens an expert takes depends on
all tokens of the group: for the encoder only, since in a decoder a token would learn of later ones.

Shape suffixes: N = choices, G = groups, S = tokens of a group, E = experts, C = tokens that an expert takes.
"""

import torch
from torch import Tensor

from model.moe.routing import Choices


def choose_by_expert(probs_GSE: Tensor, mask_GS: Tensor, capacity: int) -> Choices:
    """Each expert takes its ``capacity`` most probable real tokens, ties from left to right; weights are raw.

    A token's choices are the experts that took it, the most probable first; N is the most that any token has (at least
    1). Reading N waits for the device.

    Args:
        probs_GSE: router probabilities, float32, over the experts.
        mask_GS: True for real tokens; padding is never taken: with too few real tokens, places stay empty.
        capacity: places per expert and group.
    """
    exact_GSE = probs_GSE.detach()
    ranked = exact_GSE.masked_fill(~mask_GS.unsqueeze(-1), -1.0).sort(dim=1, descending=True, stable=True)
    token_GCE, real_GCE = ranked.indices[:, :capacity], ranked.values[:, :capacity] >= 0
    taken_GSE = torch.zeros_like(exact_GSE, dtype=torch.bool).scatter_(1, token_GCE, real_GCE)
    place_C1 = torch.arange(token_GCE.shape[1], device=token_GCE.device).unsqueeze(-1)
    place_GSE = token_GCE.new_zeros(exact_GSE.shape).scatter_(1, token_GCE, place_C1.expand_as(token_GCE))

    choices = max(1, int(taken_GSE.sum(dim=-1).max()))
    by_gate_GSE = exact_GSE.masked_fill(~taken_GSE, -1.0).argsort(dim=-1, descending=True, stable=True)
    expert_GSN = by_gate_GSE[..., :choices]
    kept_GSN = taken_GSE.gather(-1, expert_GSN)
    gate_GSN = torch.where(kept_GSN, probs_GSE.gather(-1, expert_GSN), 0.0)
    position_GSN = place_GSE.gather(-1, expert_GSN)
    return Choices(*(x.movedim(-1, 0).contiguous() for x in (expert_GSN, position_GSN, kept_GSN, gate_GSN)))
