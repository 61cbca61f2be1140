"""Token-choice routing in stages: each token requests a capacity slot of its most probable experts. All in float32.

``top_n`` is the paper's gating (Zoph et al. 2022, appendix G), as in its Mesh-TensorFlow code (``transformer/moe.py``,
``_top_n_gating``). ``flaxformer`` follows google/flaxformer (``architectures/moe/routing.py``,
``TokensChooseMaskedRouter``): every real token requests all top_n experts, without sampling; gates are the raw
probabilities; capacity is computed with ``round``. Both fill expert capacity in the same order: all first choices
before any second choice, and tokens from left to right or, if batch-prioritized, by descending top-1 probability.

A *request* is a token's claim to a capacity slot of its n-th expert; requests beyond the capacity are dropped.

Shape suffixes: N = choices of a token (top_n), G = groups, S = tokens of a group, E = experts, Q = N * S requests of a
group.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from model.config import StMoeConfig
from model.moe.routing import Choices


def choose_experts(probs_GSE: Tensor, top_n: int) -> tuple[Tensor, Tensor]:
    """Return the ``top_n`` most probable experts of each token; the lower index wins ties.

    Returns:
        Experts ``[N, G, S]``, int64, most probable first, and their probabilities ``[N, G, S]``, float32.
    """
    rest_GSE = probs_GSE.detach().clone()
    experts = []
    for _ in range(top_n):
        best_GS = rest_GSE.argmax(dim=-1)  # torch.topk promises no order among equals
        rest_GSE.scatter_(-1, best_GS.unsqueeze(-1), -1.0)
        experts.append(best_GS)
    expert_NGS = torch.stack(experts)
    return expert_NGS, probs_GSE.gather(-1, expert_NGS.movedim(0, -1)).movedim(-1, 0)


def normalize_gates(prob_NGS: Tensor) -> Tensor:
    """Divide the probabilities of a token's choices by their sum; a single choice keeps its raw probability."""
    return prob_NGS if len(prob_NGS) == 1 else prob_NGS / prob_NGS.sum(dim=0)


def draw_for_policy(
    shape: Sequence[int], config: StMoeConfig, generator: Generator | None, device: torch.device
) -> Tensor | None:
    """Draw the uniform numbers that ``second_policy`` compares the gates with, float32; None if it draws none."""
    if config.second_policy != "random":
        return None
    return torch.rand(shape, generator=generator, device=device, dtype=torch.float32)


def request_experts(gate_NGS: Tensor, config: StMoeConfig, generator: Generator | None) -> Tensor:
    """Decide which choices become requests, bool ``[N, G, S]``: the first always, others by ``config.second_policy``.

    Policies, the same in training and evaluation: ``random``: with probability min(1, gate / second_threshold);
    ``threshold``: if gate > second_threshold; ``all``; ``none``.
    """
    requested_NGS = torch.ones_like(gate_NGS, dtype=torch.bool)
    others = gate_NGS[1:].detach()
    draw = draw_for_policy(others.shape, config, generator, others.device)
    if draw is not None:
        requested_NGS[1:] = draw < others / config.second_threshold
    elif config.second_policy == "threshold":
        requested_NGS[1:] = others > config.second_threshold
    elif config.second_policy == "none":
        requested_NGS[1:] = False
    return requested_NGS


def assign_positions(
    expert_NGS: Tensor, requested_NGS: Tensor, num_experts: int, priority_GS: Tensor | None = None
) -> Tensor:
    """Return the position of each request in its expert's queue of the group, from 0, int64 ``[N, G, S]``.

    All first choices come before any second choice; among the n-th choices, tokens are ordered from left to right.

    Args:
        expert_NGS: chosen experts, int64.
        requested_NGS: bool, False where the choice is no request; its position is undefined.
        num_experts: E.
        priority_GS: if given, n-th choices are ordered by descending priority, ties from left to right
            (batch-prioritized routing, Riquelme et al. 2021).
    """
    choices, groups, size = expert_NGS.shape
    no_expert = num_experts
    queue_NGS = torch.where(requested_NGS, expert_NGS, no_expert)
    if priority_GS is not None:
        token_NGS = priority_GS.argsort(dim=-1, descending=True, stable=True).expand_as(queue_NGS)
        queue_NGS = queue_NGS.gather(-1, token_NGS)
    queue_GQ = queue_NGS.movedim(0, 1).reshape(groups, choices * size)
    order_GQ = queue_GQ.argsort(dim=-1, stable=True)
    sorted_GQ = queue_GQ.gather(-1, order_GQ)
    counts = torch.zeros(groups, num_experts + 1, dtype=torch.int64, device=expert_NGS.device)
    counts.scatter_add_(-1, queue_GQ, torch.ones_like(queue_GQ))
    start = counts.cumsum(-1) - counts
    rank_GQ = torch.arange(choices * size, device=expert_NGS.device) - start.gather(-1, sorted_GQ)
    position_GQ = torch.empty_like(rank_GQ).scatter_(-1, order_GQ, rank_GQ)
    position_NGS = position_GQ.view(groups, choices, size).movedim(1, 0)
    if priority_GS is not None:
        position_NGS = torch.empty_like(position_NGS).scatter_(-1, token_NGS, position_NGS)
    return position_NGS


def choose_by_token(
    probs_GSE: Tensor,
    mask_GS: Tensor,
    capacity: int,
    config: StMoeConfig,
    *,
    raw_gates: bool,
    prioritized: bool,
    generator: Generator | None,
) -> Choices:
    """Run all stages: choose experts, compute gates, make requests, assign capacity slots.

    Args:
        probs_GSE: router probabilities, float32.
        mask_GS: True for real tokens; padding makes no request.
        capacity: capacity slots per expert and group.
        config: ``top_n``, ``second_policy``, ``second_threshold``.
        raw_gates: whether to follow flaxformer: raw probabilities as gates, and all choices requested.
        prioritized: whether to fill expert capacity by descending top-1 probability in place of left to right.
        generator: source of the random policy's draws; None: torch's global generator of the device.
    """
    expert_NGS, prob_NGS = choose_experts(probs_GSE, config.top_n)
    if raw_gates:
        gate_NGS, requested_NGS = prob_NGS, torch.ones_like(prob_NGS, dtype=torch.bool)
    else:
        gate_NGS = normalize_gates(prob_NGS)
        requested_NGS = request_experts(gate_NGS, config, generator)
    requested_NGS &= mask_GS
    priority_GS = prob_NGS[0].detach() if prioritized else None
    position_NGS = assign_positions(expert_NGS, requested_NGS, probs_GSE.shape[-1], priority_GS)
    kept_NGS = requested_NGS & (position_NGS < capacity)
    return Choices(expert_NGS, position_NGS, kept_NGS, torch.where(kept_NGS, gate_NGS, 0.0), requested_NGS)
