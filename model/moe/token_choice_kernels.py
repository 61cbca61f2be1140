"""Token-choice routing by kernels: what ``token_choice``, ``losses`` and ``dispatch`` compute in many operations.

Shape suffixes: N = choices of a token, G = groups, S = tokens of a group, E = experts.
"""

from typing import Any

import torch
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable

from model.config import StMoeConfig
from model.kernels.available import kernels, usable
from model.moe.routing import Routing
from model.moe.token_choice import draw_for_policy

MOST_EXPERTS = 256  # a kernel's program holds the probabilities of 64 tokens in registers


def can_route(logits_GSE: Tensor, config: StMoeConfig, gating: str, *, prioritized: bool) -> bool:
    """Return whether ``route_by_kernels`` applies: token choice with capacity, from left to right, on a GPU."""
    plain = gating != "expert_choice" and not prioritized and config.capacity != "dropless"
    return plain and logits_GSE.shape[-1] <= MOST_EXPERTS and usable(logits_GSE)


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_GSE: Tensor,
        mask_GS: Tensor,
        draw_NGS: Tensor | None,
        divisor: Tensor | None,
        capacity: int,
        raw: bool,
        config: StMoeConfig,
    ) -> tuple[Tensor, ...]:
        routed, requested_NGS = kernels("routing").choose(
            logits_GSE,
            mask_GS,
            draw_NGS,
            choices=config.top_n,
            raw=raw,
            policy=config.second_policy,
            threshold=config.second_threshold,
            capacity=capacity,
        )
        real, square, _, balance = routed.sums_G4.sum(0).unbind()
        divisor = real.clamp(min=1) if divisor is None else divisor
        others = (*routed[:3], *routed[4:6], routed.sums_G4[:, 2].amax(), real.long(), requested_NGS)
        ctx.mark_non_differentiable(*others)
        ctx.set_materialize_grads(False)  # eight outputs get none
        ctx.save_for_backward(logits_GSE, mask_GS, divisor, *routed)
        ctx.raw = raw
        return routed.gate_NGS, balance / len(logits_GSE), square / divisor, *others

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_gate_NGS: Tensor | None, grad_balance: Tensor | None, grad_z: Tensor | None, *_: Any
    ) -> tuple[Tensor | None, ...]:
        logits_GSE, mask_GS, divisor, *routed = ctx.saved_tensors
        of_routing = kernels("routing")
        routed = of_routing.Routed(*routed)
        zero = divisor.new_zeros(()) if grad_balance is None or grad_z is None else divisor
        gradients = (
            torch.zeros_like(routed.gate_NGS) if grad_gate_NGS is None else grad_gate_NGS,
            zero if grad_balance is None else grad_balance,
            zero if grad_z is None else grad_z,
        )
        grad_GSE = of_routing.backward(logits_GSE, mask_GS, routed, divisor, *gradients, raw=ctx.raw)
        return grad_GSE, None, None, None, None, None, None


def route_by_kernels(
    logits_GSE: Tensor,
    mask_GS: Tensor,
    capacity: int,
    config: StMoeConfig,
    *,
    raw_gates: bool,
    generator: Generator | None,
    divisor: Tensor | None,
) -> Routing:
    """Route as ``router.route`` does, where ``can_route``; the arguments are those of ``choose_by_token``."""
    shape = (config.top_n - 1, *mask_GS.shape)
    draws = None if raw_gates else draw_for_policy(shape, config, generator, logits_GSE.device)
    gate, balance, z, expert, position, kept, slot, token, most, real, requested = _Route.apply(
        logits_GSE, mask_GS, draws, divisor, capacity, raw_gates, config
    )
    return Routing(
        expert_NGS=expert,
        position_NGS=position,
        kept_NGS=kept,
        gate_NGS=gate,
        capacity=capacity,
        num_experts=config.num_experts,
        load_balance_loss=balance,
        router_z_loss=z,
        max_logit=most,
        real_tokens=real,
        requested_NGS=requested,
        rows=(slot, token),
    )
