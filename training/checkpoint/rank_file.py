"""Contents of the rank files: master weights and per-weight optimizer state, such as AdamW's moments.

Every element is written by exactly one rank: ranks that hold the same partition write equal shares of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from optim.partition import Partition, Segment
from training.checkpoint.store.index import WEIGHT, Index, StoredParameter, StoredRange, TensorReader, chunks


class RankContents(NamedTuple):
    """Contents of one rank file, for the index."""

    states: dict[str, torch.dtype]  # of every element that is trained; empty if the file holds none
    scalars: dict[str, float]  # of the optimizer
    ranges: list["Range"]


class Range(NamedTuple):
    """Elements of a parameter in a rank file."""

    name: str
    shape: tuple[int, ...]  # global
    split_experts: bool
    stored: StoredRange
    frozen: bool


def own_share(partition: Partition, segment: Segment) -> Segment:
    """Return the elements of a segment that this rank writes; may be empty."""
    if partition.is_split:
        return segment
    each = -(-segment.numel // partition.group_size)
    start = min(segment.start + each * partition.group_rank, segment.stop)
    stop = min(start + each, segment.stop)
    return Segment(segment.spec, start, stop, segment.offset + start - segment.start)


def rank_contents(
    optimizer: Optimizer,
    partitions: Sequence[Partition],
    file: str,
    *,
    with_state: bool,
    frozen: Sequence[Partition] = (),
) -> tuple[RankContents, dict[str, Tensor]]:
    """Return this rank's contents for the index and the tensors of its file, 1-D views of the engine's own.

    Args:
        optimizer: steps the partitions.
        partitions: all of this rank's.
        frozen: what this rank holds of parameters that are not trained; stored in float32.
        file: name of the rank file.
        with_state: whether to write the optimizer's state beside the weights.

    Raises:
        ValueError: the optimizer's state is not one number per weight or for all.
    """
    shares = _own_shares(partitions)
    writers = {id(p.tensor): p.tensor for p, _ in shares}.values()
    kinds = [_kinds(optimizer, tensor) if with_state else ({WEIGHT: tensor.dtype}, {}) for tensor in writers]
    states, scalars = kinds[0] if kinds else ({}, {})
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError(f"{type(optimizer).__name__} does not keep the same state for every parameter")
    tensors = {
        f"{share.spec.name}/{state}": _view(optimizer, partition, share, state)
        for partition, share in shares
        for state in states
    }
    untrained = _own_shares(frozen)
    tensors |= {
        f"{share.spec.name}/{WEIGHT}": _view(optimizer, partition, share, WEIGHT).float()
        for partition, share in untrained
    }
    ranges = [_range(share, file, frozen=False) for _, share in shares]
    ranges += [_range(share, file, frozen=True) for _, share in untrained]
    return RankContents(states, scalars, ranges), tensors


def _own_shares(partitions: Sequence[Partition]) -> list[tuple[Partition, Segment]]:
    return [(p, share) for p in partitions for s in p.held() if (share := own_share(p, s)).numel]


def _range(share: Segment, file: str, *, frozen: bool) -> Range:
    spec, elements = share.spec, share.elements
    split = spec.expert_axis is not None and spec.expert_axis.split
    return Range(spec.name, spec.shape, split, StoredRange(elements.start, elements.stop, file), frozen)


def read_elements(optimizer: Optimizer, partitions: Sequence[Partition], reader: TensorReader) -> None:
    """Fill the partitions, and the optimizer's state per weight.

    Raises:
        ValueError: the partitions are of another model, or there is no state of a parameter that was frozen.
    """
    index = reader.index
    held = _held(partitions, reader)
    for _, segment in held:
        if index.parameters[segment.spec.name].frozen and len(index.states) > 1:
            raise ValueError(f"{reader.folder} holds no optimizer state of {segment.spec.name}, which was frozen")
    for tensor in {id(partition.tensor): partition.tensor for partition, _ in held}.values():
        # One tensor per number and partition: AdamW counts its steps in place.
        optimizer.state[tensor] = {
            name: torch.tensor(value) if isinstance(value, float) else value for name, value in index.scalars.items()
        } | {state: torch.zeros_like(tensor, requires_grad=False) for state in index.states if state != WEIGHT}
    for partition, segment in held:
        for state in index.states:
            _read(segment, state, _view(optimizer, partition, segment, state), reader)


def read_frozen(optimizer: Optimizer, partitions: Sequence[Partition], reader: TensorReader) -> None:
    """Fill partitions that no optimizer trains. Raises ValueError if they are of another model."""
    for partition, segment in _held(partitions, reader):
        _read(segment, WEIGHT, _view(optimizer, partition, segment, WEIGHT), reader)


def _held(partitions: Sequence[Partition], reader: TensorReader) -> list[tuple[Partition, Segment]]:
    held = [(partition, segment) for partition in partitions for segment in partition.held()]
    for _, segment in held:
        name, shape = segment.spec.name, segment.spec.shape
        if name not in reader.index.parameters or reader.index.parameters[name].shape != shape:
            raise ValueError(f"{reader.folder} does not hold {name} {shape}: it is of another model")
    return held


def _read(segment: Segment, state: str, target: Tensor, reader: TensorReader) -> None:
    first = segment.elements.start
    for start, stop in chunks(first, segment.elements.stop):
        target[start - first : stop - first].copy_(reader.read(segment.spec.name, state, start, stop))


def join(ranks: Sequence[RankContents]) -> Index:
    """Return the index over all ranks' files. Raises ValueError when they do not fit together."""
    training = [contents for contents in ranks if contents.states]
    for contents in training:
        if contents[:2] != training[0][:2]:
            raise ValueError(f"ranks hold different optimizer states: {contents[:2]} and {training[0][:2]}")
    parameters: dict[str, StoredParameter] = {}
    for found in sorted((found for contents in ranks for found in contents.ranges), key=lambda found: found.stored):
        ranges = (*(parameters[found.name].ranges if found.name in parameters else ()), found.stored)
        parameters[found.name] = StoredParameter(found.shape, found.split_experts, ranges, found.frozen)
    states = {state: str(dtype).removeprefix("torch.") for state, dtype in training[0].states.items()}
    return Index(states, training[0].scalars, parameters)


def _view(optimizer: Optimizer, partition: Partition, segment: Segment, state: str) -> Tensor:
    """The segment of the weights or of a state of the optimizer, 1-D."""
    tensor = partition.tensor if state == WEIGHT else optimizer.state[partition.tensor][state]
    return segment.view(tensor.detach().view(-1))


def _kinds(optimizer: Optimizer, tensor: Tensor) -> tuple[dict[str, torch.dtype], dict[str, float]]:
    """The states with one number per element of ``tensor``, and the plain numbers."""
    states, scalars = {WEIGHT: tensor.dtype}, {}
    for name, value in optimizer.state[tensor].items():
        if isinstance(value, int | float):
            scalars[name] = value
        elif value.shape == tensor.shape:
            states[name] = value.dtype
        elif value.numel() == 1:
            scalars[name] = value.item()
        else:
            raise ValueError(
                f"{type(optimizer).__name__} keeps {name} of shape {tuple(value.shape)} for {tuple(tensor.shape)} "
                "weights: checkpoints hold one number per weight or per optimizer"
            )
    return states, scalars
