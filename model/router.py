"""Top-n gating with expert capacity (ST-MoE paper, appendix G), as named stages. Everything here is float32.

Shape suffixes: N = choices (top_n), G = groups, S = tokens of a group, E = experts, C = capacity, T = G * S tokens.
A *request* is a token's wish for a place at its n-th best expert; a request beyond the capacity is dropped.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from model.config import StMoeConfig
from model.losses import load_balance_loss, router_z_loss


def expert_capacity(config: StMoeConfig, size: int, *, training: bool) -> int:
    """Places per expert and group: ``max(min(S, int(S * CF / E)), min_capacity)``; not multiplied by top_n."""
    factor = config.train_capacity_factor if training else config.eval_capacity_factor
    return max(min(size, int(size * factor / config.num_experts)), config.min_capacity)


def group_tokens(tokens: int, group_size: int) -> int:
    """Tokens of each routing group: the largest divisor of ``tokens`` that is at most ``group_size``."""
    return next(size for size in range(min(tokens, group_size), 0, -1) if tokens % size == 0)


@dataclass(frozen=True)
class Routing:
    """Where each token goes, with what weight, and what the router is charged for it."""

    expert_NGS: Tensor  # int64, the n-th best expert of each token
    position_NGS: Tensor  # int64, its place among the expert's rows of the group; meaningful where kept
    kept_NGS: Tensor  # bool, requested and within the capacity
    gate_NGS: Tensor  # float32, weight in the output; exactly 0 where not kept
    capacity: int
    num_experts: int
    load_balance_loss: Tensor  # float32 scalar, L_B
    router_z_loss: Tensor  # float32 scalar, L_Z

    def slots(self) -> Tensor:
        """Row of each choice in the buffer laid out ``[E, G, C]``, int64 ``[N, T]``; ``E * G * C`` where not kept."""
        choices, groups, size = self.expert_NGS.shape
        group_G1 = torch.arange(groups, device=self.expert_NGS.device).unsqueeze(-1)
        slot_NGS = (self.expert_NGS * groups + group_G1) * self.capacity + self.position_NGS
        nowhere = self.num_experts * groups * self.capacity
        return torch.where(self.kept_NGS, slot_NGS, nowhere).view(choices, groups * size)

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


def choose_experts(probs_GSE: Tensor, top_n: int) -> tuple[Tensor, Tensor]:
    """The ``top_n`` best experts, ties to the lower index, with their gates.

    Returns:
        ``expert_NGS`` int64 and ``gate_NGS`` float32: the probability divided by the sum over the chosen experts;
        the probability itself for ``top_n = 1``.
    """
    rest_GSE = probs_GSE.detach().clone()
    experts = []
    for _ in range(top_n):
        best_GS = rest_GSE.argmax(dim=-1)  # torch.topk promises no order among equals
        rest_GSE.scatter_(-1, best_GS.unsqueeze(-1), -1.0)
        experts.append(best_GS)
    expert_NGS = torch.stack(experts)
    gate_NGS = probs_GSE.gather(-1, expert_NGS.movedim(0, -1)).movedim(-1, 0)
    return expert_NGS, gate_NGS if top_n == 1 else gate_NGS / gate_NGS.sum(dim=0)


def request_experts(gate_NGS: Tensor, mask_GS: Tensor, config: StMoeConfig, generator: Generator | None) -> Tensor:
    """Which choices ask for a place, bool ``[N, G, S]``: the best always, the others by ``config.second_policy``.

    Policies (training and evaluation alike): ``random`` with probability min(1, gate / second_threshold), ``all``,
    ``none``, ``threshold`` if gate > second_threshold. Padding tokens request nothing.
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
    return requested_NGS & mask_GS.bool()


def assign_positions(expert_NGS: Tensor, requested_NGS: Tensor, num_experts: int) -> Tensor:
    """Place of each request in its expert's queue of the group, from 0, int64 ``[N, G, S]``.

    All first choices come before any second choice; within one choice, tokens from left to right.
    """
    choices, groups, size = expert_NGS.shape
    nobody = num_experts
    queue_GQ = torch.where(requested_NGS, expert_NGS, nobody).movedim(0, 1).reshape(groups, choices * size)
    order_GQ = queue_GQ.argsort(dim=-1, stable=True)
    sorted_GQ = queue_GQ.gather(-1, order_GQ)
    counts = torch.zeros(groups, num_experts + 1, dtype=torch.int64, device=expert_NGS.device)
    counts.scatter_add_(-1, queue_GQ, torch.ones_like(queue_GQ))
    start = counts.cumsum(-1) - counts
    rank_GQ = torch.arange(choices * size, device=expert_NGS.device) - start.gather(-1, sorted_GQ)
    position_GQ = torch.empty_like(rank_GQ).scatter_(-1, order_GQ, rank_GQ)
    return position_GQ.view(groups, choices, size).movedim(1, 0)


def route(
    logits_GSE: Tensor,
    mask_GS: Tensor,
    config: StMoeConfig,
    *,
    training: bool,
    generator: Generator | None = None,
    tokens: Tensor | None = None,
) -> Routing:
    """Send each token to its experts (paper, appendix G; equations 1-6).

    Args:
        logits_GSE: router logits; computed on in float32.
        mask_GS: 1 or True for real tokens, 0 for padding.
        config: gating, policy, capacity factors.
        training: picks the capacity factor.
        generator: source of the random policy's draws; None: torch's global generator of the device.
        tokens: what the z-loss's sum is divided by; None: the real tokens of this call.
    """
    logits_GSE = logits_GSE.float()
    probs_GSE = logits_GSE.softmax(dim=-1)
    expert_NGS, gate_NGS = choose_experts(probs_GSE, config.top_n)
    requested_NGS = request_experts(gate_NGS, mask_GS, config, generator)
    position_NGS = assign_positions(expert_NGS, requested_NGS, config.num_experts)
    capacity = expert_capacity(config, logits_GSE.shape[1], training=training)
    kept_NGS = requested_NGS & (position_NGS < capacity)
    return Routing(
        expert_NGS=expert_NGS,
        position_NGS=position_NGS,
        kept_NGS=kept_NGS,
        gate_NGS=torch.where(kept_NGS, gate_NGS, 0.0),
        capacity=capacity,
        num_experts=config.num_experts,
        load_balance_loss=load_balance_loss(probs_GSE, expert_NGS[0], mask_GS),
        router_z_loss=router_z_loss(logits_GSE, mask_GS, tokens),
    )


class Router(nn.Module):
    """Linear map from the residual stream to one logit per expert; no bias; float32 also under autocast."""

    def __init__(self, config: StMoeConfig):
        super().__init__()
        self.jitter = config.router_jitter
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.d_model))

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., d]`` → logits ``[..., E]``, float32."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if self.training and self.jitter:
                x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
            return functional.linear(x, self.weight.float())
