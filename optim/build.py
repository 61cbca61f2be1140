"""The optimizer that a configuration asks for."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optim.config import OptimizerConfig
from optim.groups import parameter_groups


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, embedding: Tensor | None = None
) -> Optimizer:
    """AdamW over ``parameter_groups``, ready to be handed to DeepSpeed."""
    return torch.optim.AdamW(
        parameter_groups(named_parameters, config, embedding),
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
    )
