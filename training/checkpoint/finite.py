"""No checkpoint holds a number that is not finite: weights and optimizer state are checked before they are written.

The check reads each tensor once, as a sum (docs/faults.md says what that costs).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import torch
from safetensors import safe_open
from torch import Tensor

from common.exit_codes import UNHEALTHY, RunError
from training.checkpoint.gathering import joined_on_all
from training.checkpoint.store.index import chunks
from training.checkpoint.store.manifest import DamagedError, FileRecord
from training.engine.parameters import engine_partitions, frozen_partitions

NAMED = 5  # tensors; more are counted


class NotFiniteError(RunError):
    """Weights or optimizer state are not finite: a restart would end the same way."""

    code = UNHEALTHY


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold a NaN or an infinity."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    sums = {name: tensor.detach().sum().float() for name, tensor in floating.items()}
    suspects: list[str] = []
    for device in {total.device for total in sums.values()}:  # one read of each
        there = {name: total for name, total in sums.items() if total.device == device}
        finite = torch.isfinite(torch.stack(list(there.values()))).tolist()
        suspects += [name for name, is_finite in zip(there, finite, strict=True) if not is_finite]
    # A sum of finite numbers may overflow.
    return [name for name in suspects if not torch.isfinite(torch.stack(torch.aminmax(floating[name].detach()))).all()]


def not_finite_on_any_rank(tensors: Mapping[str, Tensor], device: Any) -> list[str]:
    """Return what ``not_finite`` finds on all ranks together; collective, one all-reduce of one number as a rule."""
    found = not_finite(tensors)
    count = torch.tensor(len(found), device=device)
    dist.all_reduce(count)
    if not count.item():
        return []
    return joined_on_all(found, lambda ranks: sorted({name for names in ranks for name in names}))


def weights_not_finite(engine: Any) -> list[str]:
    """Return the names of the parameters whose master or frozen weights are not finite on some rank; collective."""
    tensors = {
        f"{segment.spec.name}/{number}": segment.view(partition.tensor.detach().view(-1))
        for number, partition in enumerate([*engine_partitions(engine), *frozen_partitions(engine)])
        for segment in partition.held()
    }
    found = not_finite_on_any_rank(tensors, engine.device)
    return list(dict.fromkeys(name.rpartition("/")[0] for name in found))


def check_files_finite(folder: Path, records: Iterable[FileRecord]) -> None:
    """Check the tensors of a checkpoint's files, whose bytes are known to be intact. Raises DamagedError."""
    for name in (record.name for record in records if record.name.endswith(".safetensors")):
        with safe_open(folder / name, framework="pt") as file:
            bad = [key for key in file.keys() if not _is_finite(file, key)]  # noqa: SIM118
        if bad:
            raise DamagedError(f"{folder.name}: {name} holds numbers that are not finite: {some(bad)}")


def _is_finite(file: Any, key: str) -> bool:
    """Whether a tensor of an open file is finite, read in chunks."""
    part = file.get_slice(key)
    shape = part.get_shape()
    if len(shape) != 1:
        return not not_finite({key: file.get_tensor(key)})
    return all(not not_finite({key: part[start:stop]}) for start, stop in chunks(0, shape[0]))


def some(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are; ``none`` for no name."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more if names else "none"
