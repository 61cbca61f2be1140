"""How many parameters a configuration has, without building it."""

import torch

from model.config import StMoeConfig
from model.experts import Experts
from model.st_moe import StMoeForConditionalGeneration


def count_parameters(config: StMoeConfig) -> tuple[int, int]:
    """Total parameters, and those that one token uses: all but the experts it is not sent to.

    A token counts as one that passes through encoder and decoder, at ``top_n`` experts in each sparse layer.
    """
    with torch.device("meta"):
        model = StMoeForConditionalGeneration(config)
    total = sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for m in model.modules() if isinstance(m, Experts) for p in m.parameters())
    unused = experts * (config.num_experts - config.top_n) // config.num_experts if experts else 0
    return total, total - unused
