"""How many parameters a configuration has, without building it."""

import torch

from model.config import StMoeConfig
from model.moe.layer import SparseFeedForward
from model.st_moe import StMoeForConditionalGeneration


def count_parameters(config: StMoeConfig) -> tuple[int, int]:
    """Total parameters, and those that one token uses: all but the experts it is not sent to.

    A token counts as one that passes through encoder and decoder, in each sparse layer at ``top_n`` experts or, by
    expert choice, at as many as take it on average: the training capacity factor.
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
