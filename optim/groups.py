"""Parameter groups: by the process group that reduces their gradients, and by whether they are decayed."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from optim.config import OptimizerConfig


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, embedding: Tensor | None = None
) -> list[dict[str, Any]]:
    """Split parameters into the groups that DeepSpeed's ZeRO wants.

    Expert weights that are split over ranks (``allreduce`` is False) need groups of their own with ``moe`` set and,
    as ``name``, the name of their process group. The embedding and vectors, which begin at the scale of 1, have a
    learning rate of their own; vectors are not decayed.

    Args:
        named_parameters: every parameter to train, in the model's order.
        config: learning rates and weight decay.
        embedding: the input embedding, one of the parameters.

    Returns:
        Groups without empty ones; every parameter is in exactly one.
    """
    unit_rate = config.unit_learning_rate or config.learning_rate
    groups: dict[str, dict[str, Any]] = {}
    for _, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        group: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "name": "matrices"}
        if parameter is embedding:
            group |= {"lr": unit_rate, "name": "embedding"}
        elif parameter.dim() == 1:
            group |= {"lr": unit_rate, "name": "vectors", "weight_decay": 0.0}
        elif not getattr(parameter, "allreduce", True):
            group |= {"name": str(vars(parameter)["group_name"]), "moe": True}
        groups.setdefault(group["name"], group | {"params": []})["params"].append(parameter)
    return list(groups.values())
