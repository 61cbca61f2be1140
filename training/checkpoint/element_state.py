"""Weights and what the optimizer keeps per weight (AdamW's moments), between the tensors of an engine and shards."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from training.checkpoint.ranges import Range
from training.checkpoint.store.index import WEIGHT, Entry, Index, Piece, ShardReader, chunks


class Part(NamedTuple):
    """What one rank writes."""

    states: dict[str, torch.dtype]  # of every element
    scalars: dict[str, float]  # of the optimizer
    pieces: list[tuple[str, tuple[int, ...], bool, Piece]]  # parameter, shape, expert


def owners(ranges: list[Range]) -> list[Tensor]:
    """The tensors that hold the ranges, each once, in order."""
    return list({id(r.owner): r.owner for r in ranges}.values())


def part_of(
    optimizer: Optimizer, ranges: list[Range], file: str, *, weights_only: bool = False
) -> tuple[Part, dict[str, Tensor]]:
    """This rank's share of ``ranges``: what the index says of it, and the tensors of its file, 1-D views.

    Args:
        optimizer: that steps the ranges' owners.
        ranges: all that this rank holds.
        file: name of the shard.
        weights_only: leave out the optimizer's state.

    Raises:
        ValueError: the optimizer's state is not one number per weight or for all.
    """
    shares = [share for r in ranges if (share := r.share()).start < share.stop]
    kinds = [({WEIGHT: owner.dtype}, {}) if weights_only else _kinds(optimizer, owner) for owner in owners(shares)]
    states, scalars = kinds[0] if kinds else ({}, {})
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError(f"{type(optimizer).__name__} does not keep the same of every parameter")
    tensors = {f"{r.name}/{state}": r.of(_tensor(optimizer, r, state)) for r in shares for state in states}
    return Part(states, scalars, [(r.name, r.shape, r.expert, Piece(r.start, r.stop, file)) for r in shares]), tensors


def read_ranges(optimizer: Optimizer, ranges: list[Range], reader: ShardReader) -> None:
    """Fill the ranges and the optimizer's state of them. Raises ValueError if the reader's are of another model."""
    index = reader.index
    for r in ranges:
        if r.name not in index.parameters or index.parameters[r.name].shape != r.shape:
            raise ValueError(f"{reader.folder} does not hold {r.name} {r.shape}: it is of another model")
    for owner in owners(ranges):
        # A number is a tensor of its own for each owner: AdamW counts its steps in place.
        optimizer.state[owner] = {
            name: torch.tensor(value) if isinstance(value, float) else value for name, value in index.scalars.items()
        } | {state: torch.zeros_like(owner, requires_grad=False) for state in index.states if state != WEIGHT}
    for r in ranges:
        for state in index.states:
            target = r.of(_tensor(optimizer, r, state))
            for start, stop in chunks(r.start, r.stop):
                target[start - r.start : stop - r.start].copy_(reader.read(r.name, state, start, stop))


def join(parts: list[Part]) -> Index:
    """The index of all ranks' shards. Raises ValueError when they do not fit together."""
    parts = [part for part in parts if part.pieces]
    for part in parts:
        if part[:2] != parts[0][:2]:
            raise ValueError(f"ranks hold different optimizer states: {part[:2]} and {parts[0][:2]}")
    entries: dict[str, Entry] = {}
    for name, shape, expert, piece in sorted((row for part in parts for row in part.pieces), key=lambda row: row[3]):
        pieces = entries[name].pieces if name in entries else ()
        entries[name] = Entry(shape, expert, (*pieces, piece))
    states = {state: str(dtype).removeprefix("torch.") for state, dtype in parts[0].states.items()}
    return Index(states, parts[0].scalars, entries)


def _tensor(optimizer: Optimizer, r: Range, state: str) -> Tensor:
    return r.owner if state == WEIGHT else optimizer.state[r.owner][state]


def _kinds(optimizer: Optimizer, owner: Tensor) -> tuple[dict[str, torch.dtype], dict[str, float]]:
    """What there is per element of ``owner``, and the optimizer's plain numbers."""
    states, scalars = {WEIGHT: owner.dtype}, {}
    for name, value in optimizer.state[owner].items():
        if isinstance(value, int | float):
            scalars[name] = value
        elif value.shape == owner.shape:
            states[name] = value.dtype
        elif value.numel() == 1:
            scalars[name] = value.item()
        else:
            raise ValueError(
                f"{type(optimizer).__name__} keeps {name} of shape {tuple(value.shape)} for {tuple(owner.shape)} "
                "weights: checkpoints hold one number per weight or per optimizer"
            )
    return states, scalars
