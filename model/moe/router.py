"""The router of a sparse layer: logits, and from them each token's experts, gates and the router losses, in float32.

Shape suffixes: N = choices of a token, G = groups, S = tokens of a group, E = experts, d = d_model.
"""

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from model.capacity import expert_capacity
from model.config import StMoeConfig
from model.losses import load_balance_loss, max_router_logit, router_z_loss
from model.moe.expert_choice import choose_by_expert
from model.moe.router_product import router_product
from model.moe.routing import Routing
from model.moe.token_choice import choose_by_token
from model.moe.token_choice_kernels import can_route, route_by_kernels


def route(
    logits_GSE: Tensor,
    mask_GS: Tensor,
    config: StMoeConfig,
    *,
    training: bool,
    generator: Generator | None = None,
    divisor: Tensor | None = None,
    decoder: bool = False,
) -> Routing:
    """Route each token to its experts and compute the router losses (Zoph et al. 2022, equations 1-5, appendix G).

    With ``top_n`` and ``flaxformer``, L_B counts the first choice of each real token, before capacity is applied
    (flaxformer's own code counts all top_n choices). With ``expert_choice``, whose loads are equal by construction, it
    is 0.

    Args:
        logits_GSE: router logits, cast to float32.
        mask_GS: 1 or True for real tokens, 0 for padding, which gets no capacity slot.
        config: gating, second policy, capacity factors.
        training: selects the capacity factor.
        generator: source of the random policy's draws; None: torch's global generator of the device.
        divisor: divisor of the z-loss, see ``LossDivisors``; None: the real tokens of this call.
        decoder: whether to route as a decoder layer: with ``decoder_gating``, and never batch-prioritized, because
            expert choice and priorities would leak future tokens.
    """
    logits_GSE, mask_GS = logits_GSE.float(), mask_GS.bool()
    gating = config.stack_gating(decoder=decoder)
    capacity = expert_capacity(config, logits_GSE.shape[1], training=training, decoder=decoder)
    raw_gates, prioritized = gating == "flaxformer", config.batch_prioritized and not decoder
    if can_route(logits_GSE, config, gating, prioritized=prioritized):
        return route_by_kernels(
            logits_GSE, mask_GS, capacity, config, raw_gates=raw_gates, generator=generator, divisor=divisor
        )
    probs_GSE = logits_GSE.softmax(dim=-1)
    if gating == "expert_choice":
        choices = choose_by_expert(probs_GSE, mask_GS, capacity)
        balance = probs_GSE.new_zeros(())
    else:
        choices = choose_by_token(
            probs_GSE,
            mask_GS,
            capacity,
            config,
            raw_gates=raw_gates,
            prioritized=prioritized,
            generator=generator,
        )
        balance = load_balance_loss(probs_GSE, choices.expert_NGS[0], mask_GS)
    return Routing(
        **choices._asdict(),
        capacity=capacity,
        num_experts=config.num_experts,
        load_balance_loss=balance,
        router_z_loss=router_z_loss(logits_GSE, mask_GS, divisor),
        max_logit=max_router_logit(logits_GSE, mask_GS),
        real_tokens=mask_GS.sum(),
    )


class Router(nn.Module):
    """Linear map from the residual stream to one logit per expert, without bias; in float32 also under autocast.

    With ``router_precision: bf16`` the product is computed in bf16, whose round-off grows with the logits: the setting
    that the paper warns of, for studies of instability.
    """

    def __init__(self, config: StMoeConfig):
        super().__init__()
        self.jitter = config.router_jitter
        self.low_precision = config.router_precision == "bf16"
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.d_model))

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits ``[..., E]``, float32, from ``x [..., d]``; jitter applies in training mode."""
        with torch.autocast(x.device.type, enabled=False):
            if self.training and self.jitter:
                x = x.float()
                x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
            if self.low_precision:
                return functional.linear(x.bfloat16(), self.weight.bfloat16()).float()
            return router_product(x, self.weight.float())
