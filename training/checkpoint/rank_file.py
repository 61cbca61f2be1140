"""Contents of the rank files: master weights and per-weight optimizer state, such as AdamW's moments.

Every element is written by exactly one rank: ranks that hold the same partition write equal shares of it.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from optim.partition import Partition, Segment
from training.checkpoint.store.index import WEIGHT, Index, StoredParameter, StoredRange, TensorReader, chunks


class RankContents(NamedTuple):
    """Contents of one rank file, for the index."""

    states: dict[str, torch.dtype]  # of every element
    scalars: dict[str, float]  # of the optimizer
    ranges: list[tuple[str, tuple[int, ...], bool, StoredRange]]  # parameter, global shape, split experts


def own_share(partition: Partition, segment: Segment) -> Segment:
    """Return the elements of a segment that this rank writes; may be empty."""
    if partition.is_split:
        return segment
    each = -(-segment.numel // partition.group_size)
    start = min(segment.start + each * partition.group_rank, segment.stop)
    stop = min(start + each, segment.stop)
    return Segment(segment.spec, start, stop, segment.offset + start - segment.start)


def rank_contents(
    optimizer: Optimizer, partitions: Sequence[Partition], file: str, *, with_state: bool
) -> tuple[RankContents, dict[str, Tensor]]:
    """Return this rank's contents for the index and the tensors of its file, 1-D views of the engine's own.

    Args:
        optimizer: steps the partitions.
        partitions: all of this rank's.
        file: name of the rank file.
        with_state: whether to write the optimizer's state beside the weights.

    Raises:
        ValueError: the optimizer's state is not one number per weight or for all.
    """
    shares = [(p, share) for p in partitions for s in p.held() if (share := own_share(p, s)).numel]
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
    ranges = []
    for _, share in shares:
        spec, elements = share.spec, share.elements
        split = spec.expert_axis is not None and spec.expert_axis.split
        ranges.append((spec.name, spec.shape, split, StoredRange(elements.start, elements.stop, file)))
    return RankContents(states, scalars, ranges), tensors


def read_elements(optimizer: Optimizer, partitions: Sequence[Partition], reader: TensorReader) -> None:
    """Fill the partitions, and the optimizer's state per weight. Raises ValueError if they are of another model."""
    index = reader.index
    held = [(partition, segment) for partition in partitions for segment in partition.held()]
    for _, segment in held:
        name, shape = segment.spec.name, segment.spec.shape
        if name not in index.parameters or index.parameters[name].shape != shape:
            raise ValueError(f"{reader.folder} does not hold {name} {shape}: it is of another model")
    for tensor in {id(partition.tensor): partition.tensor for partition, _ in held}.values():
        # One tensor per number and partition: AdamW counts its steps in place.
        optimizer.state[tensor] = {
            name: torch.tensor(value) if isinstance(value, float) else value for name, value in index.scalars.items()
        } | {state: torch.zeros_like(tensor, requires_grad=False) for state in index.states if state != WEIGHT}
    for partition, segment in held:
        first = segment.elements.start
        for state in index.states:
            target = _view(optimizer, partition, segment, state)
            for start, stop in chunks(first, segment.elements.stop):
                target[start - first : stop - first].copy_(reader.read(segment.spec.name, state, start, stop))


def join(ranks: Sequence[RankContents]) -> Index:
    """Return the index over all ranks' files. Raises ValueError when they do not fit together."""
    ranks = [contents for contents in ranks if contents.ranges]
    for contents in ranks:
        if contents[:2] != ranks[0][:2]:
            raise ValueError(f"ranks hold different optimizer states: {contents[:2]} and {ranks[0][:2]}")
    parameters: dict[str, StoredParameter] = {}
    for name, shape, split, stored in _sorted_ranges(ranks):
        before = parameters[name].ranges if name in parameters else ()
        parameters[name] = StoredParameter(shape, split, (*before, stored))
    states = {state: str(dtype).removeprefix("torch.") for state, dtype in ranks[0].states.items()}
    return Index(states, ranks[0].scalars, parameters)


def _sorted_ranges(ranks: Sequence[RankContents]) -> Iterator[tuple[str, tuple[int, ...], bool, StoredRange]]:
    return iter(sorted((row for contents in ranks for row in contents.ranges), key=lambda row: row[3]))


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
