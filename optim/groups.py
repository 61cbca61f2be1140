"""Parameter groups: by the process group that reduces their gradients, learning rate and weight decay."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from optim.config import OptimizerConfig

if TYPE_CHECKING:  # a plan is made without torch
    from torch import Tensor

GroupKey = tuple[str | None, float, float]  # name of the process group of split experts, learning rate, weight decay


def group_key(process_group: str | None, config: OptimizerConfig, *, dimensions: int, embedding: bool) -> GroupKey:
    """Return what parameters of one group have in common.

    Args:
        process_group: name, of experts that are split over ranks; None for all others.
        config: learning rates and weight decay.
        dimensions: of the parameter; vectors are not decayed, and their initial scale is 1, as the embedding's.
        embedding: whether it is the input embedding.
    """
    vector = dimensions == 1
    rate = config.learning_rate
    if vector or embedding:
        rate = config.unit_learning_rate or rate
    return process_group, rate, 0.0 if vector else config.weight_decay


def parameter_groups(
    parameters: "Iterable[Tensor]", config: OptimizerConfig, embedding: "Tensor | None" = None
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
    groups: dict[GroupKey, dict[str, Any]] = {}
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO 3 may have partitioned it
        process_group = None if getattr(parameter, "allreduce", True) else str(vars(parameter)["group_name"])
        key = group_key(process_group, config, dimensions=len(shape), embedding=parameter is embedding)
        if key not in groups:
            _, rate, decay = key
            groups[key] = {"params": [], "lr": rate, "weight_decay": decay, "name": f"dense_{len(groups)}"}
            if process_group is not None:
                groups[key] |= {"name": process_group, "moe": True}
        groups[key]["params"].append(parameter)
    return list(groups.values())
