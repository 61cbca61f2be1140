"""Adafactor's state of one shard, and its names, which are the same at every parallel layout.

Names: ``<parameter>`` or, where the leading axis runs over experts, ``<parameter>/expert_<global number>``, followed by
``/row`` ``[R]`` and ``/column`` ``[C]`` of a factored second moment, or by ``/second_moment/<start>-<stop>`` and
``/momentum/<start>-<stop>``: those elements of the flattened parameter, or expert, that one rank holds.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from optim.second_moment import FactoredMoment, FullMoment
from optim.slices import Shard, Slice

# Where, under which name, elements [start, stop) of a tensor are: tensor name → its fragments.
FragmentIndex = dict[str, list[tuple[int, int, str]]]


class ShardState:
    """Second moments, momentum if any, and the number of updates; zero at first.

    Every unit (expert, or whole parameter) of the shard's parameters has a place in the vectors ``[U]`` of all units.
    """

    def __init__(self, shard: Shard, min_dim_size_to_factor: int, *, momentum: bool):
        self.shard, self.step = shard, 0
        like = shard.tensor.detach()
        self.momentum = torch.zeros_like(like).view(-1) if momentum else None
        sizes = [
            FactoredMoment.size(part) if part.spec.is_factored(min_dim_size_to_factor) else 0 for part in shard.slices
        ]
        self.means = like.new_zeros(sum(sizes))
        self.moments: list[FactoredMoment | FullMoment] = []
        self.unit_places: list[slice] = []  # of each moment in the vectors of units
        self.mean_places: list[slice] = []  # of each moment in ``means``; empty when it is not factored
        units = used = 0
        for part, size in zip(shard.slices, sizes, strict=True):
            self.unit_places.append(slice(units, units + part.spec.units))
            self.mean_places.append(slice(used, used + size))
            units, used = units + part.spec.units, used + size
            means = self.means[self.mean_places[-1]]
            self.moments.append(FactoredMoment(part, means) if size else FullMoment(part, like))
        numel = [float(part.spec.unit_numel) for part in shard.slices for _ in range(part.spec.units)]
        self.unit_numel_U = like.new_tensor(numel)
        # Of the last update, for metrics: RMS of weights and of the update, and what the update was divided by.
        self.weight_rms_U = self.update_rms_U = self.clip_U = like.new_empty(0)

    @property
    def nbytes(self) -> int:
        """Bytes of this rank's state."""
        tensors = [self.means, *(m.moment for m in self.moments if isinstance(m, FullMoment))]
        if self.momentum is not None:
            tensors.append(self.momentum)
        return sum(tensor.nbytes for tensor in tensors)

    def named_state(self) -> Iterator[tuple[str, Tensor]]:
        """What this rank has to save: what it alone holds and, on the first rank, what the group has in common."""
        first = self.shard.rank == 0
        for moment in self.moments:
            if isinstance(moment, FactoredMoment):
                if first:
                    yield from self._means_of(moment)
            elif first or self.shard.partitioned:
                yield from _fragments(moment.part, "second_moment", moment.moment)
            if self.momentum is not None and (first or self.shard.partitioned):
                yield from _fragments(moment.part, "momentum", moment.part.view(self.momentum))

    def load(self, state: Mapping[str, Tensor], index: FragmentIndex) -> None:
        """Copy what this rank needs from ``state``, saved at any layout. Raises ValueError if some of it is missing."""
        for moment in self.moments:
            if isinstance(moment, FactoredMoment):
                for name, own in self._means_of(moment):
                    saved = state.get(name)
                    if saved is None or saved.shape != own.shape:
                        raise ValueError(f"the optimizer state has no {name} of shape {list(own.shape)}")
                    own.copy_(saved)
            else:
                _load_fragments(moment.part, "second_moment", moment.moment, state, index)
            if self.momentum is not None:
                _load_fragments(moment.part, "momentum", moment.part.view(self.momentum), state, index)

    @staticmethod
    def _means_of(moment: FactoredMoment) -> Iterator[tuple[str, Tensor]]:
        for unit in range(moment.part.spec.units):
            key = moment.part.spec.unit_key(unit)
            yield f"{key}/row", moment.row_UR[unit]
            yield f"{key}/column", moment.column_UC[unit]


def _fragments(part: Slice, kind: str, values: Tensor) -> Iterator[tuple[str, Tensor]]:
    for unit, elements, place in part.fragments():
        yield f"{part.spec.unit_key(unit)}/{kind}/{elements.start}-{elements.stop}", values[place]


def index_fragments(names: Mapping[str, Tensor]) -> FragmentIndex:
    """Sort the names of fragments by the tensor that they are of."""
    index: FragmentIndex = defaultdict(list)
    for name in names:
        tensor, _, span = name.rpartition("/")
        if tensor.endswith(("/second_moment", "/momentum")):
            start, _, stop = span.partition("-")
            index[tensor].append((int(start), int(stop), name))
    return index


def _load_fragments(part: Slice, kind: str, values: Tensor, state: Mapping[str, Tensor], index: FragmentIndex) -> None:
    for unit, elements, place in part.fragments():
        tensor = f"{part.spec.unit_key(unit)}/{kind}"
        own, missing = values[place], len(elements)
        for start, stop, name in index.get(tensor, ()):
            low, high = max(start, elements.start), min(stop, elements.stop)
            if low < high:
                own[low - elements.start : high - elements.start] = state[name][low - start : high - start]
                missing -= high - low
        if missing:
            raise ValueError(f"the optimizer state has no {tensor} of elements {elements.start}-{elements.stop}")
