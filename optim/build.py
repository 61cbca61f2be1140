"""Builds the configured optimizer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optim.adafactor import Adafactor
from optim.config import OptimizerConfig
from optim.groups import parameter_groups
from optim.parameter import ParameterSpec


def build_optimizer(
    specs: Mapping[Tensor, ParameterSpec], config: OptimizerConfig, embedding: Tensor | None = None
) -> Optimizer:
    """Return the optimizer over ``parameter_groups``, to be passed to DeepSpeed.

    Args:
        specs: of every parameter, in the model's order.
        config: of the optimizer.
        embedding: the input embedding, one of the parameters.
    """
    groups = parameter_groups(specs, config, embedding)
    if config.name == "adafactor":
        return Adafactor(
            groups,
            specs,
            lr=config.learning_rate,
            update_clipping=config.update_clipping,
            beta1=config.beta1,
            min_dim_size_to_factor=config.min_dim_size_to_factor,
        )
    moments: dict[str, Any] = {"betas": (config.beta1, config.beta2), "eps": config.epsilon}
    if config.name == "adamw":
        # Fused: one pass over memory. Torch's own choice on a CPU is a loop with one pass for each operation.
        return torch.optim.AdamW(groups, **moments, fused=True)
    from bitsandbytes.optim import AdamW8bit  # optional: requirements-8bit.txt

    return AdamW8bit(groups, **moments)
