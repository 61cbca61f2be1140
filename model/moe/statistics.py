"""What a call of a sparse layer tells of its router: sums over the real tokens, so that calls and ranks add up.

Shape suffixes: N = choices of a token, G = groups, S = tokens of a group, T = G * S tokens, E = experts, B = bins of
the histogram, K = numbers in all: ``len(SUMS) + E + B + 1``.
"""

import torch
from torch import Tensor

from model.moe.routing import Routing

BINS = 20  # of the histogram of router probabilities: equal parts of 0 to 1
SUMS = (
    "tokens",  # real ones
    "dropped_tokens",  # that no expert processes
    "first_requests",  # 0 where experts choose
    "dropped_first_requests",  # beyond the capacity
    "other_requests",  # of a token's second and third choice
    "dropped_other_requests",
    "served_rows",  # choices that an expert processes
    "rows",  # of the experts' buffer, empty ones included
    "entropy",  # of the router's probabilities, nats
    "confidence",  # largest probability
    "logsumexp",  # of the logits
    "calls",  # this one: 1
    "load_balance_loss",  # L_B, a sum over calls
    "router_z_loss",  # L_Z, a sum over calls
)


@torch.no_grad()
def router_statistics(logits_GSE: Tensor, mask_GS: Tensor, routing: Routing, rows: int) -> Tensor:
    """Return ``SUMS``, the load of each expert, the histogram of probabilities, and the largest logsumexp.

    The load is the number of first choices before capacity is applied or, where experts choose, of capacity slots
    taken. Computed on the device in a fixed order; nothing is read by the host.

    Args:
        logits_GSE: router logits.
        mask_GS: True for real tokens; no other is counted.
        routing: of these logits.
        rows: of the experts' buffer.

    Returns:
        Float64 ``[K]``: all but the last number are sums; the last, a maximum, is -inf without real tokens.
    """
    logits_TE, real_T = logits_GSE.detach().float().flatten(0, 1), mask_GS.flatten().bool()
    experts = logits_TE.shape[-1]
    log_p_TE = logits_TE.log_softmax(-1)
    p_TE = log_p_TE.exp()
    log_z_T = logits_TE.logsumexp(-1)
    of_tokens_3T = torch.stack((-(p_TE * log_p_TE).sum(-1), p_TE.amax(-1), log_z_T)).masked_fill(~real_T, 0)

    kept_NT, expert_NT = routing.kept_NGS.flatten(1), routing.expert_NGS.flatten(1)
    kept_N = kept_NT.sum(-1)
    if routing.requested_NGS is None:
        requested_N, expert_T, counted_T = kept_N.new_zeros(1), expert_NT.flatten(), kept_NT.flatten()
        dropped_N = requested_N
    else:
        requested_N, expert_T, counted_T = routing.requested_NGS.flatten(1).sum(-1), expert_NT[0], real_T
        dropped_N = requested_N - kept_N
    load_E = _count(expert_T, counted_T, experts)
    histogram_B = _count((p_TE * BINS).long(), real_T.unsqueeze(-1).expand_as(p_TE), BINS)

    counts = torch.stack(
        (
            routing.real_tokens,
            routing.dropped_tokens(),
            requested_N[0],
            dropped_N[0],
            requested_N[1:].sum(),
            dropped_N[1:].sum(),
            kept_N.sum(),
            kept_N.new_full((), rows),
        )
    )
    losses = torch.stack((log_z_T.new_ones(()), routing.load_balance_loss, routing.router_z_loss))
    largest = log_z_T.masked_fill(~real_T, float("-inf")).amax(0, keepdim=True)
    parts = (counts, of_tokens_3T.double().sum(-1), losses, load_E, histogram_B, largest)
    return torch.cat([part.double() for part in parts])


def _count(index: Tensor, counted: Tensor, size: int) -> Tensor:
    """Count how often each of ``size`` numbers occurs where ``counted``, int64 ``[size]``; others count as the next."""
    index = torch.where(counted, index.clamp(0, size - 1), size).flatten()
    counts = torch.zeros(size + 1, dtype=torch.int64, device=index.device)
    return counts.scatter_add_(0, index, torch.ones_like(index))[:size]  # of integers, so in any order the same
