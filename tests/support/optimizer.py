"""Master weights and optimizer state of an engine, whole, whatever its layout: for comparisons."""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from optim.adafactor import Adafactor


def master_weights(optimizer: Adafactor) -> dict[str, Tensor]:
    """Of every unit that the shards' groups hold, under its layout-free name; collective."""
    weights = {}
    for state in optimizer.shards.values():
        for part in state.shard.slices:
            full = torch.zeros(part.spec.numel, dtype=state.shard.tensor.dtype)
            full[part.start : part.stop] = part.view(state.shard.tensor.detach().view(-1))
            if state.shard.partitioned:
                dist.all_reduce(full, group=state.shard.group)
            for unit, values in enumerate(full.view(part.spec.units, -1)):
                weights[part.spec.unit_key(unit)] = values.clone()
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
