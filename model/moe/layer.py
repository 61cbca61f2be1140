"""The sparse feed-forward: router → dispatch → experts → combine, with all experts in this process.

Shape suffixes: B = sequences, L = positions, G = groups, S = tokens of a group, T = B * L = G * S tokens, E = experts,
N = choices of a token, R = rows of the experts' buffer (capacity slots of all experts and groups; dropless: one row per
request), d = d_model.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.capacity import group_tokens
from model.config import StMoeConfig
from model.layers.precision import to_matmul_dtype
from model.layers.ranges import COMBINE, DISPATCH, ROUTER, named_range
from model.layers.values import has_values
from model.losses import RouterLosses, router_losses_by_sequence
from model.moe.dispatch import combine, dispatch, tokens_of_rows
from model.moe.experts import Experts
from model.moe.router import Router, route
from model.moe.routing import Routing
from model.moe.statistics import router_statistics


class SparseFeedForward(nn.Module):
    """Mixture-of-experts feed-forward (Zoph et al. 2022, section 2); ``parallel.layer`` splits it over ranks."""

    # called with the routing and the router logits ``[G, S, E]`` of each forward pass
    observer: Callable[[Routing, Tensor], None] | None = None

    def __init__(self, config: StMoeConfig, *, decoder: bool = False):
        # Not super().__init__(): the expert-parallel layer also derives from a DeepSpeed class whose __init__ it skips.
        nn.Module.__init__(self)
        self.config, self.decoder = config, decoder
        self.observed = False  # whether calls return ``RouterLosses.statistics``
        self.router = Router(config)
        self.experts = self.make_experts(config)

    def make_experts(self, config: StMoeConfig) -> Experts:
        """Build the experts that this process holds: here, all of them."""
        return Experts(config, config.num_experts)

    @torch.compiler.disable
    def forward(
        self, x_BLd: Tensor, mask_BL: Tensor, divisor: Tensor | None = None, weight_B: Tensor | None = None
    ) -> tuple[Tensor, RouterLosses]:
        """Route and transform the tokens.

        Args:
            x_BLd: normalized activations.
            mask_BL: bool, True for real tokens; padding uses no expert and comes out as 0.
            divisor: divisor of the z-loss, see ``LossDivisors``; None: the real tokens of this call.
            weight_B: if given, the router losses are ``router_losses_by_sequence`` with these weights.

        Returns:
            The output ``[B, L, d]``, in autocast's dtype or else that of ``x_BLd``, and the router losses.
        """
        batch, length, d_model = x_BLd.shape
        size = group_tokens(batch * length, self.config.group_size)
        mask_GS = mask_BL.reshape(-1, size)
        with named_range(ROUTER):
            logits_GSE = self.router(x_BLd).view(*mask_GS.shape, self.config.num_experts)
            routing = route(
                logits_GSE, mask_GS, self.config, training=self.training, divisor=divisor, decoder=self.decoder
            )
        if self.observer is not None:
            self.observer(routing, logits_GSE)

        counts_E = None
        with named_range(DISPATCH):
            slots = self.config.num_experts * len(mask_GS) * routing.capacity
            if self.config.capacity == "dropless" or self._skips_empty_slots(x_BLd):
                slot_NT, counts_E = routing.ragged_slots()
                rows = int(counts_E.sum())  # synchronizes with the device: the number depends on the tokens
                token_R = tokens_of_rows(slot_NT, rows)
                slots = rows if self.config.capacity == "dropless" else slots
            else:
                slot_NT, token_R = routing.buffer()
            # Cast before the dispatch, so that ranks exchange rows in the dtype in which the experts compute.
            rows_Rd = dispatch(to_matmul_dtype(x_BLd).reshape(-1, d_model), slot_NT, token_R)
        y_Rd = self.experts(rows_Rd, counts_E)
        with named_range(COMBINE):
            y_Td = combine(y_Rd, routing.gate_NGS.flatten(1), slot_NT, token_R)

        balance, z = routing.load_balance_loss, routing.router_z_loss
        if weight_B is not None:
            by_expert = self.config.stack_gating(decoder=self.decoder) == "expert_choice"
            first_BL = None if by_expert else routing.expert_NGS[0].view(batch, length)
            balance, z = router_losses_by_sequence(logits_GSE.view(batch, length, -1), first_BL, mask_BL, weight_B)
        losses = RouterLosses(
            load_balance=balance,
            z=z,
            max_logit=routing.max_logit,
            dropped_tokens=routing.dropped_tokens(),
            real_tokens=routing.real_tokens,
            statistics=router_statistics(logits_GSE, mask_GS, routing, slots) if self.observed else None,
        )
        return y_Td.view(batch, length, d_model), losses

    def _skips_empty_slots(self, x_BLd: Tensor) -> bool:
        """Return whether experts run on the tokens in their capacity slots alone: the same results, less work.

        Only where the number of tokens is at hand, on a CPU, and no other rank expects equal numbers of rows.
        """
        return has_values(x_BLd) and x_BLd.device.type == "cpu" and self.experts.num_local == self.config.num_experts
