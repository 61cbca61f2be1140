"""Parameter groups: by the process group that reduces their gradients, learning rate and weight decay."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from optim.config import OptimizerConfig


def parameter_groups(
    parameters: Iterable[Tensor], config: OptimizerConfig, embedding: Tensor | None = None
) -> list[dict[str, Any]]:
    """Split parameters into the groups that DeepSpeed's ZeRO needs, as few as possible: each has its own collectives.

    Expert weights that are split over ranks (``allreduce`` is False) need their own groups, with ``moe`` set and the
    name of their process group as ``name``. The embedding and vectors, whose initial scale is 1, may have their own
    learning rate; vectors are not decayed.

    Args:
        parameters: every parameter, in the model's order; frozen ones are skipped.
        config: learning rates and weight decay.
        embedding: the input embedding, one of the parameters.

    Returns:
        Groups, none of them empty; every trainable parameter is in exactly one.
    """
    unit_rate = config.unit_learning_rate or config.learning_rate
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        vector = parameter.dim() == 1
        rate = unit_rate if vector or parameter is embedding else config.learning_rate
        decay = 0.0 if vector else config.weight_decay
        process_group = None if getattr(parameter, "allreduce", True) else str(vars(parameter)["group_name"])
        key = (process_group, rate, decay)
        if key not in groups:
            groups[key] = {"params": [], "lr": rate, "weight_decay": decay, "name": f"dense_{len(groups)}"}
            if process_group is not None:
                groups[key] |= {"name": process_group, "moe": True}
        groups[key]["params"].append(parameter)
    return list(groups.values())
