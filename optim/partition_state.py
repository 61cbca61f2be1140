"""Adafactor's state of one partition, and its names, which are the same at every parallel layout.

Names: ``<parameter>`` or, where the leading axis runs over experts, ``<parameter>/expert_<global number>``, followed by
``/row`` ``[R]`` and ``/column`` ``[C]`` of a factored second moment, or by ``/second_moment/<start>-<stop>`` and
``/momentum/<start>-<stop>``: those elements of the flattened parameter, or expert, that one rank holds.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from optim.moments.factored import FactoredMoments
from optim.moments.full import FullMoments, UnitSpan
from optim.partition import Partition, Segment

# Elements that an operation works on at a time. CPU: few, to stay in a core's cache; elsewhere: bounds the scratch.
CPU_BLOCK, DEVICE_BLOCK = 1 << 19, 1 << 25

# Called with a tensor's name, start and stop; gives (start, elements) of each saved fragment, as far as it lies there.
Fragments = Callable[[str, int, int], Iterable[tuple[int, Tensor]]]


class PartitionState:
    """Second moments, momentum if any, and the update counter; zero at first.

    Every unit (expert, or whole parameter) of the partition's parameters has an entry in the vectors ``[U]``: shape by
    shape those with factors, then the others.
    """

    def __init__(self, partition: Partition, min_dim_size_to_factor: int, *, epsilon: float, momentum: bool):
        self.partition, self.step = partition, 0
        like = partition.tensor.detach()
        block_size = CPU_BLOCK if like.device.type == "cpu" else DEVICE_BLOCK
        self.momentum = torch.zeros_like(like).view(-1) if momentum else None
        self.is_factored = {s: s.spec.is_factored(min_dim_size_to_factor) for s in partition.segments}
        factored = [s for s in partition.segments if self.is_factored[s]]
        self.factored = FactoredMoments(factored, like, epsilon, block_size)
        self.units: dict[Segment, slice] = {}  # of each segment in the vectors of units
        self.full_spans: dict[Segment, slice] = {}  # of each segment without factors in the full moments
        count, numel, held = self.factored.sizes.units, 0, []
        for segment in partition.segments:
            if self.is_factored[segment]:
                self.units[segment] = self.factored.units(segment)
                continue
            self.units[segment] = slice(count, count + segment.spec.units)
            self.full_spans[segment] = slice(numel, numel + segment.numel)
            for unit, elements, span in segment.unit_runs():
                held.append(UnitSpan(count + unit, segment.offset + span.start, len(elements)))
            count, numel = count + segment.spec.units, numel + segment.numel
        self.full = FullMoments(held, like, epsilon, block_size)
        unit_numel = [0.0] * count
        for segment, units in self.units.items():
            unit_numel[units] = [float(segment.spec.unit_numel)] * segment.spec.units
        self.unit_numel_U = like.new_tensor(unit_numel)
        # For metrics, from the last update: RMS of weights and of the update, and the divisor of clipping.
        self.weight_rms_U = self.update_rms_U = self.clip_U = like.new_empty(0)

    @property
    def nbytes(self) -> int:
        """Bytes of this rank's state."""
        tensors = [self.factored.means, self.full.moment, *([] if self.momentum is None else [self.momentum])]
        return sum(tensor.nbytes for tensor in tensors)

    def named_state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what this rank saves: what it alone holds and, on the group's first rank, what all its ranks hold."""
        first = self.partition.group_rank == 0
        for segment in self.partition.segments:
            if self.is_factored[segment]:
                if first:
                    yield from self._means_of(segment)
            elif first or self.partition.is_split:
                yield from _fragments(segment, "second_moment", self.full.moment[self.full_spans[segment]])
            if self.momentum is not None and (first or self.partition.is_split):
                yield from _fragments(segment, "momentum", segment.view(self.momentum))

    def load(self, state: Mapping[str, Tensor], fragments: Fragments) -> None:
        """Copy what this rank needs from ``state``, saved at any layout. Raises ValueError if a tensor is missing."""
        for segment in self.partition.segments:
            if self.is_factored[segment]:
                for name, own in self._means_of(segment):
                    saved = state.get(name)
                    if saved is None or saved.shape != own.shape:
                        raise ValueError(f"the optimizer state has no {name} of shape {list(own.shape)}")
                    own.copy_(saved)
            else:
                own = self.full.moment[self.full_spans[segment]]
                _load_fragments(segment, "second_moment", own, fragments)
            if self.momentum is not None:
                _load_fragments(segment, "momentum", segment.view(self.momentum), fragments)

    def _means_of(self, segment: Segment) -> Iterator[tuple[str, Tensor]]:
        for unit in range(segment.spec.units):
            key = segment.spec.unit_key(unit)
            row_R, column_C = self.factored.row_and_column(segment, unit)
            yield f"{key}/row", row_R
            yield f"{key}/column", column_C


def _fragments(segment: Segment, kind: str, values: Tensor) -> Iterator[tuple[str, Tensor]]:
    for unit, elements, span in segment.unit_runs():
        yield fragment_name(f"{segment.spec.unit_key(unit)}/{kind}", elements.start, elements.stop), values[span]


def fragment_name(tensor: str, start: int, stop: int) -> str:
    """Return the name under which elements ``[start, stop)`` of a tensor are saved."""
    return f"{tensor}/{start}-{stop}"


def read_fragment_name(name: str) -> tuple[str, int, int] | None:
    """Return tensor, start and stop of the name of a fragment; None for the name of a whole tensor."""
    tensor, _, span = name.rpartition("/")
    if not tensor.endswith(("/second_moment", "/momentum")):
        return None
    start, _, stop = span.partition("-")
    return tensor, int(start), int(stop)


def index_fragments(state: Mapping[str, Tensor]) -> Fragments:
    """Return what finds fragments among all names of a state."""
    index: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for name in state:
        fragment = read_fragment_name(name)
        if fragment is not None:
            index[fragment[0]].append((*fragment[1:], name))

    def find(tensor: str, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        for first, last, name in index.get(tensor, ()):
            low, high = max(start, first), min(stop, last)
            if low < high:
                yield low, state[name][low - first : high - first]

    return find


def _load_fragments(segment: Segment, kind: str, values: Tensor, fragments: Fragments) -> None:
    for unit, elements, span in segment.unit_runs():
        tensor = f"{segment.spec.unit_key(unit)}/{kind}"
        own, missing = values[span], len(elements)
        for start, saved in fragments(tensor, elements.start, elements.stop):
            own[start - elements.start :][: len(saved)] = saved
            missing -= len(saved)
        if missing:
            raise ValueError(f"the optimizer state has no {tensor} of elements {elements.start}-{elements.stop}")
