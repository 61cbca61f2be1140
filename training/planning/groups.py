"""Parameters as ZeRO holds them: the optimizer's groups on a rank, laid out flat, and cut into equal partitions.

DeepSpeed 0.19.8: ``runtime/zero/stage_1_and_2.py`` and ``runtime/bf16_optimizer.py`` concatenate the parameters of a
group, pad them to a multiple of two elements per rank, and give each rank an equal part; ``runtime/zero/stage3.py``
cuts every parameter into equal parts, each padded on its own, and joins the parts of a group to sub-groups.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any

from model.size import ParameterShape, parameter_shapes
from optim.groups import GroupKey, group_key
from training.config.deepspeed import read_deepspeed_file
from training.config.run import RunConfig
from training.config.training import TRAINABLE
from training.planning.layout import Layout

ALIGNMENT = 2  # elements for each rank of a group, to which its flat tensor is padded (nccl_start_alignment_factor)


@dataclass(frozen=True)
class Held:
    """What a rank holds of a parameter when it is whole: all of it or, of experts that are split, its experts."""

    shape: ParameterShape
    numel: int
    replicas: int  # ranks that hold the same elements, among which ZeRO partitions them
    trained: bool

    @property
    def units(self) -> int:
        """Tensors that Adafactor treats each on its own: experts, or 1."""
        return self.numel // self.unit_numel

    @property
    def unit_shape(self) -> tuple[int, ...]:
        """Shape of one unit; a parameter of all experts has one unit for each (``optim.parameter.ParameterSpec``)."""
        return self.shape.shape[1:] if self.has_experts else self.shape.shape

    @property
    def unit_numel(self) -> int:
        """Elements of one unit."""
        return prod(self.unit_shape)

    @property
    def has_experts(self) -> bool:
        """Whether the leading axis runs over experts, held ones or (hidden biases) all."""
        return self.shape.family == "experts"

    @property
    def partition_numel(self) -> int:
        """Elements of a rank's part under ZeRO 3, padding included."""
        return -(-self.numel // self.replicas)

    def is_factored(self, min_dim_size: int) -> bool:
        """Return whether Adafactor keeps row and column means only."""
        return len(self.unit_shape) == 2 and min(self.unit_shape) >= min_dim_size


@dataclass(frozen=True)
class Group:
    """A parameter group of the optimizer on one rank, in the model's order."""

    members: tuple[Held, ...]
    replicas: int

    @cached_property
    def edges(self) -> list[int]:
        """Start of every member in the flat tensor, and the end of the last."""
        return [0, *accumulate(held.numel for held in self.members)]

    @property
    def numel(self) -> int:
        """Elements without padding."""
        return self.edges[-1]

    @property
    def padded(self) -> int:
        """Elements of the flat tensor."""
        alignment = ALIGNMENT * self.replicas
        return -(-self.numel // alignment) * alignment

    @property
    def partition(self) -> int:
        """Elements of one rank's partition under ZeRO 1 and 2, padding included."""
        return self.padded // self.replicas

    def range_of(self, index: int) -> tuple[int, int]:
        """Return which elements the rank with this index in the group holds, without padding."""
        low = min(index * self.partition, self.numel)
        return low, min(low + self.partition, self.numel)

    def touched(self, index: int) -> int:
        """Return the elements, all of them, of the members that a rank's partition holds elements of."""
        low, high = self.range_of(index)
        if low == high:
            return 0
        edges = self.edges
        return edges[bisect_left(edges, high)] - edges[bisect_right(edges, low) - 1]

    def spans(self, chosen: Callable[[Held], bool]) -> list[tuple[int, int]]:
        """Return where the chosen members start and end in the flat tensor."""
        spans = zip(self.edges, self.edges[1:], self.members, strict=False)
        return [(start, end) for start, end, held in spans if chosen(held)]

    def overlap(self, index: int, spans: Iterable[tuple[int, int]]) -> int:
        """Return how many elements of these spans a rank's partition holds."""
        low, high = self.range_of(index)
        return sum(max(0, min(end, high) - max(start, low)) for start, end in spans)


def held_parameters(config: RunConfig, layout: Layout) -> list[Held]:
    """Return what a rank holds of every parameter, in the model's order."""
    families = TRAINABLE[config.training.trainable]
    found = []
    for shape in parameter_shapes(config.architecture()):
        size = layout.expert_parallel_size if shape.by_expert else 1
        found.append(Held(shape, shape.numel // size, layout.gpus // size, shape.family in families))
    return found


def optimizer_groups(config: RunConfig, layout: Layout) -> list[Group]:
    """Return the groups of the optimizer's parameters, as ``optim.groups.parameter_groups`` makes them."""
    groups: dict[GroupKey, list[Held]] = {}
    for held in held_parameters(config, layout):
        if not held.trained:
            continue
        process_group = "experts" if held.shape.by_expert else None
        embedding = held.shape.family == "embedding"
        key = group_key(process_group, config.optimizer, dimensions=len(held.shape.shape), embedding=embedding)
        groups.setdefault(key, []).append(held)
    return [Group(tuple(members), members[0].replicas) for members in groups.values()]


def sub_groups(group: Group, size: int) -> list[list[Held]]:
    """Return the sub-groups that ZeRO 3 steps one after another: parts are added until they reach ``size`` elements."""
    if size >= sum(held.partition_numel for held in group.members):
        return [list(group.members)]
    found: list[list[Held]] = [[]]
    numel = 0
    for held in group.members:
        if numel >= size:
            found.append([])
            numel = 0
        found[-1].append(held)
        numel += held.partition_numel
    return found


@dataclass(frozen=True)
class ZeroOptions:
    """What a DeepSpeed file says of ZeRO, or DeepSpeed's defaults (``runtime/zero/config.py``); sizes in elements."""

    reduce_bucket: int
    overlap: bool
    sub_group: int
    prefetch: int
    max_live: int
    max_reuse: int
    persistence: int
    offload_optimizer: bool
    offload_parameters: bool

    @classmethod
    def of(cls, config: RunConfig, layout: Layout) -> "ZeroOptions":
        """Return the options of a configuration's file, for the layout's stage. Raises ConfigError."""
        options = read_deepspeed_file(config.training.deepspeed_config).get("zero_optimization", {})

        def value(key: str, default: Any) -> Any:
            found = options.get(key)
            return default if found in (None, "auto") else found

        def size(key: str, default: float) -> int:
            return int(value(key, default))

        def offloads(key: str) -> bool:
            return (value(key, {}) or {}).get("device", "none") != "none"

        return cls(
            reduce_bucket=size("reduce_bucket_size", 5e8),
            overlap=bool(value("overlap_comm", layout.zero_stage == 3)),
            sub_group=size("sub_group_size", 1e9),
            prefetch=size("stage3_prefetch_bucket_size", 5e7),
            max_live=size("stage3_max_live_parameters", 1e9),
            max_reuse=size("stage3_max_reuse_distance", 1e9),
            persistence=size("stage3_param_persistence_threshold", 1e5),
            offload_optimizer=layout.zero_stage > 0 and offloads("offload_optimizer"),
            offload_parameters=layout.zero_stage == 3 and offloads("offload_param"),
        )
