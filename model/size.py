"""Parameter counts of a configuration, without allocating a model."""

import torch

from model.config import StMoeConfig
from model.moe.layer import SparseFeedForward
from model.st_moe import StMoeForConditionalGeneration


def count_parameters(config: StMoeConfig) -> tuple[int, int]:
    """Return the total number of parameters, and the number active for one token.

    Active are all parameters but those of experts that the token is not routed to. The token passes through encoder and
    decoder and, in each sparse layer, through ``top_n`` experts; with expert choice, through as many experts as select
    it on average, which is the training capacity factor.
    """
    with torch.device("meta"):
        model = StMoeForConditionalGeneration(config)
    total = sum(p.numel() for p in model.parameters())
    unused = 0
    for layer in model.modules():
        if isinstance(layer, SparseFeedForward):
            by_expert = config.stack_gating(decoder=layer.decoder) == "expert_choice"
            used = min(config.train_capacity_factor if by_expert else config.top_n, config.num_experts)
            experts = sum(p.numel() for p in layer.experts.parameters())
            unused += int(experts * (config.num_experts - used) / config.num_experts)
    return total, total - unused
