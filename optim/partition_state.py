"""Adafactor's state of one partition, and its names, which are the same at every parallel layout.

Names: ``<parameter>`` or, where the leading axis runs over experts, ``<parameter>/expert_<global number>``, followed by
``/row`` ``[R]`` and ``/column`` ``[C]`` of a factored second moment, or by ``/second_moment/<start>-<stop>`` and
``/momentum/<start>-<stop>``: those elements of the flattened parameter, or expert, that one rank holds.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from optim.partition import Partition, Segment
from optim.second_moment import FactoredMoment, FullMoment

# Tensor name → (start, stop, name under which these elements are saved).
FragmentIndex = dict[str, list[tuple[int, int, str]]]


class PartitionState:
    """Second moments, momentum if any, and the update counter; zero at first.

    Every unit (expert, or whole parameter) of the partition's parameters has an entry in the vectors ``[U]``.
    """

    def __init__(self, partition: Partition, min_dim_size_to_factor: int, *, momentum: bool):
        self.partition, self.step = partition, 0
        like = partition.tensor.detach()
        self.momentum = torch.zeros_like(like).view(-1) if momentum else None
        sizes = [
            FactoredMoment.size(segment) if segment.spec.is_factored(min_dim_size_to_factor) else 0
            for segment in partition.segments
        ]
        self.means = like.new_zeros(sum(sizes))
        self.moments: list[FactoredMoment | FullMoment] = []
        self.unit_spans: list[slice] = []  # of each moment in the vectors of units
        self.mean_spans: list[slice] = []  # of each moment in ``means``; empty when it is not factored
        units = used = 0
        for segment, size in zip(partition.segments, sizes, strict=True):
            self.unit_spans.append(slice(units, units + segment.spec.units))
            self.mean_spans.append(slice(used, used + size))
            units, used = units + segment.spec.units, used + size
            means = self.means[self.mean_spans[-1]]
            self.moments.append(FactoredMoment(segment, means) if size else FullMoment(segment, like))
        numel = [float(segment.spec.unit_numel) for segment in partition.segments for _ in range(segment.spec.units)]
        self.unit_numel_U = like.new_tensor(numel)
        # For metrics, from the last update: RMS of weights and of the update, and the divisor of clipping.
        self.weight_rms_U = self.update_rms_U = self.clip_U = like.new_empty(0)

    @property
    def nbytes(self) -> int:
        """Bytes of this rank's state."""
        tensors = [self.means, *(m.moment for m in self.moments if isinstance(m, FullMoment))]
        if self.momentum is not None:
            tensors.append(self.momentum)
        return sum(tensor.nbytes for tensor in tensors)

    def named_state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what this rank saves: what it alone holds and, on the group's first rank, what all its ranks hold."""
        first = self.partition.group_rank == 0
        for moment in self.moments:
            if isinstance(moment, FactoredMoment):
                if first:
                    yield from self._means_of(moment)
            elif first or self.partition.is_split:
                yield from _fragments(moment.segment, "second_moment", moment.moment)
            if self.momentum is not None and (first or self.partition.is_split):
                yield from _fragments(moment.segment, "momentum", moment.segment.view(self.momentum))

    def load(self, state: Mapping[str, Tensor], index: FragmentIndex) -> None:
        """Copy what this rank needs from ``state``, saved at any layout. Raises ValueError if a tensor is missing."""
        for moment in self.moments:
            if isinstance(moment, FactoredMoment):
                for name, own in self._means_of(moment):
                    saved = state.get(name)
                    if saved is None or saved.shape != own.shape:
                        raise ValueError(f"the optimizer state has no {name} of shape {list(own.shape)}")
                    own.copy_(saved)
            else:
                _load_fragments(moment.segment, "second_moment", moment.moment, state, index)
            if self.momentum is not None:
                _load_fragments(moment.segment, "momentum", moment.segment.view(self.momentum), state, index)

    @staticmethod
    def _means_of(moment: FactoredMoment) -> Iterator[tuple[str, Tensor]]:
        for unit in range(moment.segment.spec.units):
            key = moment.segment.spec.unit_key(unit)
            yield f"{key}/row", moment.row_UR[unit]
            yield f"{key}/column", moment.column_UC[unit]


def _fragments(segment: Segment, kind: str, values: Tensor) -> Iterator[tuple[str, Tensor]]:
    for unit, elements, span in segment.unit_runs():
        yield f"{segment.spec.unit_key(unit)}/{kind}/{elements.start}-{elements.stop}", values[span]


def index_fragments(names: Mapping[str, Tensor]) -> FragmentIndex:
    """Index the names of fragments by the tensor to which they belong."""
    index: FragmentIndex = defaultdict(list)
    for name in names:
        tensor, _, span = name.rpartition("/")
        if tensor.endswith(("/second_moment", "/momentum")):
            start, _, stop = span.partition("-")
            index[tensor].append((int(start), int(stop), name))
    return index


def _load_fragments(
    segment: Segment, kind: str, values: Tensor, state: Mapping[str, Tensor], index: FragmentIndex
) -> None:
    for unit, elements, span in segment.unit_runs():
        tensor = f"{segment.spec.unit_key(unit)}/{kind}"
        own, missing = values[span], len(elements)
        for start, stop, name in index.get(tensor, ()):
            low, high = max(start, elements.start), min(stop, elements.stop)
            if low < high:
                own[low - elements.start : high - elements.start] = state[name][low - start : high - start]
                missing -= high - low
        if missing:
            raise ValueError(f"the optimizer state has no {tensor} of elements {elements.start}-{elements.stop}")
