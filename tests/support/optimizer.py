"""Complete master weights and optimizer state of an engine of any layout, for comparisons."""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from optim.adafactor import Adafactor


def master_weights(optimizer: Adafactor) -> dict[str, Tensor]:
    """Return the weights of every unit that this rank's groups hold, under its layout-free name; collective."""
    weights = {}
    for partition in (state.partition for state in optimizer.partition_states.values()):
        for segment in partition.segments:
            spec = segment.spec
            full = torch.zeros(spec.numel, dtype=partition.tensor.dtype)
            full[segment.start : segment.stop] = segment.view(partition.tensor.detach().view(-1))
            if partition.is_split:
                dist.all_reduce(full, group=partition.group)
            for unit, values in enumerate(full.view(spec.units, -1)):
                weights[spec.unit_key(unit)] = values.clone()
    return weights


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What the ranks hold together; what several hold must be the same."""
    whole: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            assert name not in whole or torch.equal(whole[name], value), name
            whole[name] = value
    return whole


def whole_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A named state with the fragments of every tensor put together."""
    tensors: dict[str, Tensor] = {}
    fragments: dict[str, list[tuple[int, int, Tensor]]] = {}
    for name in state:
        match = re.fullmatch(r"(.*)/(\d+)-(\d+)", name)
        if match is None:
            tensors[name] = state[name]
        else:
            fragments.setdefault(match[1], []).append((int(match[2]), int(match[3]), state[name]))
    for name, pieces in fragments.items():
        pieces.sort(key=lambda piece: piece[0])
        assert [piece[0] for piece in pieces] == [0, *(piece[1] for piece in pieces[:-1])], name
        tensors[name] = torch.cat([piece[2] for piece in pieces])
    return tensors
