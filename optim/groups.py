"""Parameter groups: by the process group that reduces their gradients, and by whether they are decayed."""

from collections.abc import Iterable
from typing import Any

from torch import nn


def parameter_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into the groups that DeepSpeed's ZeRO wants.

    Expert weights that are split over ranks (``allreduce`` is False) need groups of their own with ``moe`` set and,
    as ``name``, the name of their process group; vectors are not decayed.

    Args:
        named_parameters: every parameter to train, in the model's order.
        weight_decay: for matrices and stacks of matrices.

    Returns:
        Groups without empty ones; every parameter is in exactly one.
    """
    split: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for _, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        sharded_over = "" if getattr(parameter, "allreduce", True) else str(getattr(parameter, "group_name", ""))
        split.setdefault((sharded_over, parameter.dim() > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decayed else 0.0,
            "name": sharded_over or ("dense_matrices" if decayed else "dense_vectors"),
            **({"moe": True} if sharded_over else {}),
        }
        for (sharded_over, decayed), parameters in split.items()
    ]
