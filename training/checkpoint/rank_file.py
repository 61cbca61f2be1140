"""Contents of the rank files: master weights and per-weight optimizer state, such as AdamW's moments.

Every element is written by exactly one rank: ranks that hold the same partition write equal shares of it.

Shape suffixes: R ranks, P parameters, 2 start and stop.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from optim.partition import Partition, Segment
from training.checkpoint.store.index import WEIGHT, Index, StoredParameter, TensorReader, chunks
from training.checkpoint.store.runs import Runs


class Entry(NamedTuple):
    """A parameter of the model, the same on every rank."""

    name: str
    shape: tuple[int, ...]  # global
    split_experts: bool
    frozen: bool


class RankContents(NamedTuple):
    """Contents of one rank file, for the index."""

    states: dict[str, str]  # dtypes, as torch names them, of every element that is trained; empty if there is none
    scalars: dict[str, float]  # of the optimizer
    entries: list[Entry]  # every parameter, in the order in which every rank lists them
    spans: list[tuple[int, int]]  # start and stop of the elements of each in the file; equal for none


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
    *,
    with_state: bool,
    frozen: Sequence[Partition] = (),
) -> tuple[RankContents, dict[str, Tensor]]:
    """Return this rank's contents for the index and the tensors of its file, 1-D views of the engine's own.

    Args:
        optimizer: steps the partitions.
        partitions: all of this rank's.
        frozen: what this rank holds of parameters that are not trained; stored in float32.
        with_state: whether to write the optimizer's state beside the weights.

    Raises:
        ValueError: the optimizer's state is not one number per weight or for all.
    """
    shares = _own_shares(partitions)
    writers = {id(p.tensor): p.tensor for p, share in shares if share.numel}.values()
    kinds = [_kinds(optimizer, tensor) if with_state else ({WEIGHT: tensor.dtype}, {}) for tensor in writers]
    states, scalars = kinds[0] if kinds else ({}, {})
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError(f"{type(optimizer).__name__} does not keep the same state for every parameter")
    tensors = {
        f"{share.spec.name}/{state}": _view(optimizer, partition, share, state)
        for partition, share in shares
        for state in (states if share.numel else ())
    }
    untrained = _own_shares(frozen)
    tensors |= {
        f"{share.spec.name}/{WEIGHT}": _view(optimizer, partition, share, WEIGHT).float()
        for partition, share in untrained
        if share.numel
    }
    entries = [_entry(share, frozen=False) for _, share in shares] + [_entry(s, frozen=True) for _, s in untrained]
    spans = [(share.elements.start, share.elements.stop) for _, share in [*shares, *untrained]]
    dtypes = {state: str(dtype).removeprefix("torch.") for state, dtype in states.items()}
    return RankContents(dtypes, scalars, entries, spans), tensors


def _own_shares(partitions: Sequence[Partition]) -> list[tuple[Partition, Segment]]:
    """What this rank writes of every parameter of the partitions, empty where that is nothing."""
    return [(partition, own_share(partition, segment)) for partition in partitions for segment in partition.segments]


def _entry(share: Segment, *, frozen: bool) -> Entry:
    spec = share.spec
    return Entry(spec.name, spec.shape, spec.expert_axis is not None and spec.expert_axis.split, frozen)


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


def join(ranks: Sequence[RankContents], files: Sequence[str]) -> Index:
    """Return the index over all ranks' files.

    Args:
        ranks: contents of each rank's file; the entries are those of the first.
        files: their names.

    Raises:
        ValueError: the contents do not fit together.
    """
    training = [contents for contents in ranks if contents.states]
    for contents in training:
        if contents[:2] != training[0][:2]:
            raise ValueError(f"ranks hold different optimizer states: {contents[:2]} and {training[0][:2]}")
    spans_RP2 = np.array([contents.spans for contents in ranks], np.int64)
    numbers_R = np.arange(len(ranks))
    parameters = {
        entry.name: StoredParameter(
            entry.shape, entry.split_experts, _runs(entry.name, spans_RP2[:, number], numbers_R), entry.frozen
        )
        for number, entry in enumerate(ranks[0].entries)
    }
    return Index(training[0].states, training[0].scalars, tuple(files), parameters)


def _runs(name: str, spans_R2: NDArray[np.int64], numbers_R: NDArray[np.int64]) -> Runs:
    try:
        return Runs.of_arrays(spans_R2[:, 0], spans_R2[:, 1], numbers_R)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


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
