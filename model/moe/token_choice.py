"""Token choice: each token asks its best experts for a place, as named stages. Everything here is float32.

``top_n`` is the paper's gating (appendix G) as its Mesh-TensorFlow code has it (``transformer/moe.py``,
``_top_n_gating``). ``flaxformer`` is that of google/flaxformer (``architectures/moe/routing.py``,
``TokensChooseMaskedRouter``), of which it takes: all top_n experts requested by every real token, without sampling;
the raw probability as weight; capacity by ``round``. The order of places is the same in both: every first choice
before any second one, tokens from left to right or, batch-prioritised, by descending best probability.

Shape suffixes: N = choices (top_n), G = groups, S = tokens of a group, E = experts, Q = N * S requests of a group.
A *request* is a token's wish for a place at its n-th best expert; a request beyond the capacity is dropped.
"""

import torch
from torch import Generator, Tensor

from model.config import StMoeConfig
from model.moe.routing import Choices


def choose_experts(probs_GSE: Tensor, top_n: int) -> tuple[Tensor, Tensor]:
    """The ``top_n`` most probable experts, ties to the lower index.

    Returns:
        ``expert_NGS`` int64 and their probabilities ``prob_NGS`` float32.
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
    """Weights of the ``top_n`` gating: probabilities over the sum of the chosen; raw ones for a single choice."""
    return prob_NGS if len(prob_NGS) == 1 else prob_NGS / prob_NGS.sum(dim=0)


def request_experts(gate_NGS: Tensor, config: StMoeConfig, generator: Generator | None) -> Tensor:
    """Which choices ask for a place, bool ``[N, G, S]``: the best always, the others by ``config.second_policy``.

    Policies (training and evaluation alike): ``random`` with probability min(1, gate / second_threshold), ``all``,
    ``none``, ``threshold`` if gate > second_threshold.
    """
    requested_NGS = torch.ones_like(gate_NGS, dtype=torch.bool)
    others = gate_NGS[1:].detach()
    if config.second_policy == "random":
        draw = torch.rand(others.shape, generator=generator, device=others.device, dtype=torch.float32)
        requested_NGS[1:] = draw < others / config.second_threshold
    elif config.second_policy == "threshold":
        requested_NGS[1:] = others > config.second_threshold
    elif config.second_policy == "none":
        requested_NGS[1:] = False
    return requested_NGS


def assign_positions(
    expert_NGS: Tensor, requested_NGS: Tensor, num_experts: int, priority_GS: Tensor | None = None
) -> Tensor:
    """Place of each request in its expert's queue of the group, from 0, int64 ``[N, G, S]``.

    All first choices come before any second choice; within one choice, tokens from left to right.

    Args:
        expert_NGS: int64, the experts asked.
        requested_NGS: bool, False where nothing is asked.
        num_experts: E.
        priority_GS: if given, within one choice tokens of greater priority come first, equals from left to right
            (batch-prioritised routing, Riquelme et al. 2021).
    """
    choices, groups, size = expert_NGS.shape
    nobody = num_experts
    queue_NGS = torch.where(requested_NGS, expert_NGS, nobody)
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
    """All stages: experts, weights, requests, places.

    Args:
        probs_GSE: router probabilities, float32.
        mask_GS: True for real tokens; padding requests nothing.
        capacity: places per expert and group.
        config: ``top_n``, ``second_policy``, ``second_threshold``.
        raw_gates: flaxformer's rules in place of the paper's.
        prioritized: places by descending best probability in place of left to right.
        generator: source of the random policy's draws.
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
    return Choices(expert_NGS, position_NGS, kept_NGS, torch.where(kept_NGS, gate_NGS, 0.0))
