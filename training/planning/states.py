"""Bytes of weights, gradients and optimizer states on one GPU, and of DeepSpeed's buffers, at every ZeRO stage.

Counted are the tensors that DeepSpeed 0.19.8 allocates for this project's options, to the byte. P = elements that a
rank holds whole (all dense parameters, its experts), p = elements of its partition, padding included:

=====  ==================  =======================  ==================  ==========================================
stage  precision           weights                  master              gradients when a step's backward pass ends
=====  ==================  =======================  ==================  ==========================================
0      fp32, autocast      4 P                      0                   4 P
0      bf16                2 P                      4 P                 2 P
1      fp32, autocast      4 P                      4 p                 4 x the whole parameters that p touches
1      bf16, fp32 sums     2 P                      4 p                 4 P (sums) + 2 P
1      bf16, bf16 sums     2 P                      4 p                 2 x the whole parameters that p touches
2      as stage 1; bf16 with fp32 sums: gradients 4 p
3      fp32, autocast      4 p                      0                   4 p
3      bf16                2 p                      4 p                 4 p or, bf16 sums, 2 p
=====  ==================  =======================  ==================  ==========================================

ZeRO 3 steps fp32 weights themselves, see ``optim.stage_three``, unless weights or states are on the host.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from training.config.run import RunConfig
from training.planning.gathers import gather
from training.planning.groups import Group, Held, ZeroOptions, held_parameters, optimizer_groups, sub_groups
from training.planning.layout import Layout

SIZES = {"fp32": 4, "bf16": 2}
STAGE_ZERO_BUCKET = 500_000_000  # elements that the engine reduces at once (MEMORY_OPT_ALLREDUCE_SIZE)
EIGHT_BIT_BLOCK, EIGHT_BIT_SMALLEST = 256, 4096  # elements; of bitsandbytes
# Families whose own weights go into bf16 products: ``training.config.deepspeed.PRODUCTS``.
LOW_PRECISION_FAMILIES = {"attention", "feed_forward", "experts", "head"}


@dataclass(frozen=True)
class States:
    """Bytes on one GPU; ``host``: in the memory of its host, where the DeepSpeed file moves states there."""

    weights: int
    gradients: int  # when the last backward pass of a step ends, before the optimizer steps
    master: int  # fp32 weights beside others
    optimizer: int
    buckets: int  # DeepSpeed's buffers for gradients that are to be reduced
    backward_gradients: int  # the most while a backward pass runs
    carried_gradients: int  # when another micro-batch of the step begins; 0 without accumulation
    reduction: int  # beside the buffers and ``backward_gradients``, while gradients are reduced
    live: int  # ZeRO 3: the most weights of other ranks that are gathered at once
    step: int  # what is allocated while the optimizer steps, without its scratch memory
    host: int = 0

    @property
    def kept(self) -> int:
        """What a GPU keeps between steps."""
        return self.weights + self.master + self.optimizer

    @property
    def total(self) -> int:
        """The five parts together."""
        return self.kept + self.gradients + self.buckets

    def as_row(self) -> dict[str, int]:
        """Return the figures for JSON, named as the parts of a plan."""
        row = asdict(self)
        return row | {"gathered": row.pop("live"), "copies": row.pop("step")}


def states_of(config: RunConfig, layout: Layout, rank: int | None = None) -> States:
    """Return the states of a rank, for a step after the first.

    Args:
        config: the run's.
        layout: whose stage, precision and sizes are counted, whatever the configuration's.
        rank: None: the largest of each part over all ranks, which may hold different parameters.

    Raises:
        ConfigError: the DeepSpeed file is broken.
    """
    counter = _Counter(config, layout)
    return counter.states(counter.different_ranks() if rank is None else [rank])


class _Counter:
    def __init__(self, config: RunConfig, layout: Layout):
        self.config, self.layout, self.options = config, layout, ZeroOptions.of(config, layout)
        self.stage, t = layout.zero_stage, config.training
        self.held = held_parameters(config, layout)
        self.groups = optimizer_groups(config, layout)
        self.weight = 2 if layout.precision == "bf16" else 4
        # Gradients are summed in the weights' dtype, unless the configuration says fp32, which needs ZeRO.
        own = layout.precision != "bf16" or not self.stage
        self.sums = self.weight if own else SIZES[t.gradient_accumulate_dtype]
        self.whole = sum(held.numel for held in self.held if held.trained)

    def states(self, ranks: Iterable[int]) -> States:
        parts = [self._at_stage_3(ranks), self._up_to_stage_2(ranks)][self.stage < 3]
        if self.options.offload_optimizer:
            moved = parts["master"] + parts["optimizer"] + self._partitions() * 4
            parts |= {"host": moved, "master": 0, "optimizer": 0, "step": 0}
        if self.options.offload_parameters:
            parts["host"] = parts.get("host", 0) + parts["weights"]
            parts["weights"] = 0
        return States(**parts)

    def different_ranks(self) -> list[int]:
        """Return ranks of which one holds the most: those beside the edges of parameters in partitions.

        From one such edge to the next, partitions lie within one parameter each, and are alike.
        """
        if self.stage == 0:
            return [0]
        found = {0, self.layout.gpus - 1}
        for group in self.groups:
            stride = self.layout.gpus // group.replicas
            edges, size = group.edges, group.partition
            if self.stage == 3:  # the last ranks' parts are shorter, and first ranks hold most
                edges, size = [0], 1
            for index in {edge // size + beside for edge in edges for beside in (-1, 0, 1)}:
                found |= {index * stride, (index + 1) * stride - 1}
        return sorted(rank for rank in found if 0 <= rank < self.layout.gpus)

    def _partitions(self) -> int:
        if self.stage == 3:
            return sum(held.partition_numel for held in self.held if held.trained)
        return sum(group.partition for group in self.groups)

    def _up_to_stage_2(self, ranks: Iterable[int]) -> dict[str, int]:
        frozen = sum(held.numel for held in self.held if not held.trained)
        if self.stage == 0:
            weights, several = self.whole * self.weight, self.layout.accumulation > 1
            gradients = self.whole * self.weight
            master = 0 if self.weight == 4 else 4 * self.whole
            copy = self._engine_bucket([held.numel for held in self.held if held.trained and not held.shape.by_expert])
            return {
                "weights": weights + frozen * self.weight, "gradients": gradients, "master": master,
                "optimizer": self._optimizer(ranks), "buckets": 0, "backward_gradients": gradients,
                "carried_gradients": gradients if several else 0, "reduction": copy * self.weight, "live": 0,
                "step": master,  # fp32 copies of the gradients
            }  # fmt: skip
        flat = sum(group.padded for group in self.groups)
        partitions = 4 * self._partitions()
        parts = {
            "weights": (flat + frozen) * self.weight, "master": partitions, "optimizer": self._optimizer(ranks),
            "live": 0,
        }  # fmt: skip
        if self.stage == 1 and self.sums > self.weight:  # DeepSpeed's BF16_Optimizer: sums of all gradients are kept
            gradients = flat * self.sums + self.whole * self.weight
            copy = self._engine_bucket([group.padded for group in self.groups if not group.members[0].shape.by_expert])
            return parts | {
                "gradients": gradients, "backward_gradients": gradients, "carried_gradients": gradients, "buckets": 0,
                "reduction": copy * self.sums, "step": 0,
            }  # fmt: skip
        kept, low = self._reduced(ranks), self.sums > self.weight
        buffers = self._buckets() * (2 if self.options.overlap else 1) * self.options.reduce_bucket * self.weight
        largest = max(held.numel for held in self.held if held.trained)
        copy = min(self.whole, max(self.options.reduce_bucket, largest)) * self._reduced_size()
        full = self.whole * self.weight
        if self.stage == 1:
            # Overlapped, they are reduced as they come; else after the backward pass, bucket by bucket. At the first,
            # memory is allocated for the whole partition, while all gradients that are not in the bucket remain.
            backward = kept if self.options.overlap and self.layout.accumulation == 1 else full
            carried = full
            if not self.options.overlap:
                copy = max(0, kept - self._first_bucket() * self.weight)
        else:
            backward = kept + (0 if low or self.layout.accumulation == 1 else kept)
            carried = kept
        return parts | {
            "gradients": kept, "backward_gradients": backward, "buckets": buffers, "reduction": copy,
            "carried_gradients": carried if self.layout.accumulation > 1 else 0,
            "step": 0 if low else 4 * max(group.partition for group in self.groups),  # its gradients, flattened
        }  # fmt: skip

    def _first_bucket(self) -> int:
        """Elements that are reduced first: the optimizer's groups one after the other, until a buffer is full."""
        filled: dict[bool, int] = {}
        for held in (held for group in self.groups for held in group.members):
            low = self._low_reduced(held)
            if filled.get(low, 0) + held.numel > self.options.reduce_bucket:
                break
            filled[low] = filled.get(low, 0) + held.numel
        return sum(filled.values())

    def _reduced(self, ranks: Iterable[int]) -> int:
        """Reduced gradients of ZeRO 1 and 2, until the step: partitions, or all parameters that they touch, whole."""
        if self.sums > self.weight:
            return sum(group.partition for group in self.groups) * self.sums
        return self.weight * max(
            sum(group.touched(self._index(group, rank)) for group in self.groups)
            + sum(group.partition - self._filled(group, rank) for group in self.groups)
            for rank in ranks
        )

    def _filled(self, group: Group, rank: int) -> int:
        low, high = group.range_of(self._index(group, rank))
        return high - low

    def _index(self, group: Group, rank: int) -> int:
        """The rank's index in the ranks that hold the group's parameters (``rank // size`` of those of experts)."""
        return rank // (self.layout.gpus // group.replicas)

    def _engine_bucket(self, tensors: list[int]) -> int:
        """Elements that the engine flattens at once: tensors are added until there are more than the limit."""
        largest = numel = count = 0
        for tensor in tensors:
            numel, count = numel + tensor, count + 1
            if numel > STAGE_ZERO_BUCKET:
                largest, numel, count = max(largest, numel if count > 1 else 0), 0, 0
        return max(largest, numel if count > 1 else 0)

    def _low_reduced(self, held: Held) -> bool:
        """Whether a gradient is reduced in bf16."""
        if self.config.training.gradient_reduce_dtype == "fp32":
            return False
        return self.layout.precision != "bf16_autocast" or is_product(held)

    def _reduced_size(self) -> int:
        return max(2 if self._low_reduced(held) else 4 for held in self.held if held.trained)

    def _buckets(self) -> int:
        """Buffers: one for each dtype in which gradients are reduced."""
        return len({self._low_reduced(held) for held in self.held if held.trained})

    def _at_stage_3(self, ranks: Iterable[int]) -> dict[str, int]:
        partitions = self._partitions()
        sizes = {2 if self._low_reduced(held) else 4 for held in self.held if held.trained}
        bucket = self.options.reduce_bucket
        gradients = partitions * self.sums
        largest = max(held.numel for held in self.held if held.trained)
        copy = min(self.whole, max(bucket, largest)) * max(sizes)
        # fp32 weights on the same device as the optimizer's state are stepped themselves.
        apart = self.options.offload_optimizer or self.options.offload_parameters
        joined = [sum(held.partition_numel for held in some) for group in self._stage_3_groups() for some in group]
        return {
            "weights": sum(held.partition_numel for held in self.held) * self.weight,
            "gradients": gradients, "backward_gradients": gradients, "carried_gradients": gradients,
            "master": partitions * 4 if apart or self.weight < 4 else 0,
            "optimizer": self._optimizer(ranks), "buckets": bucket * sum(sizes), "reduction": copy,
            "live": gather(self.config, self.layout).most_live * self.weight,
            "step": max(joined) * 4,
        }  # fmt: skip

    def _stage_3_groups(self) -> list[list[list[Held]]]:
        return [sub_groups(group, self.options.sub_group) for group in self.groups]

    def _optimizer(self, ranks: Iterable[int]) -> int:
        """Bytes of the state after the first step."""
        optimizer = self.config.optimizer
        if optimizer.name != "adafactor":
            return sum(moments_bytes(optimizer.name, numel) for numel in self._tensors())
        least, factored, momentum = optimizer.min_dim_size_to_factor, 0, 0
        for held in self.held:
            if held.trained and held.is_factored(least):
                factored += held.units * sum(held.unit_shape)
        if optimizer.beta1:
            momentum = sum(self._tensors())
        return 4 * (factored + momentum + self._full_moments(ranks, least))

    def _tensors(self) -> list[int]:
        """Elements of each tensor that the optimizer steps."""
        if self.stage == 0:
            return [held.numel for held in self.held if held.trained]
        if self.stage < 3:
            return [group.partition for group in self.groups]
        return [sum(held.partition_numel for held in some) for group in self._stage_3_groups() for some in group]

    def _full_moments(self, ranks: Iterable[int], least: int) -> int:
        """Elements that a rank holds of the parameters without factors."""
        if self.stage == 0:
            return sum(held.numel for held in self.held if held.trained and not held.is_factored(least))
        if self.stage < 3:
            plain = [(group, group.spans(lambda held: not held.is_factored(least))) for group in self.groups]
            return max(sum(group.overlap(self._index(group, rank), spans) for group, spans in plain) for rank in ranks)
        members = [held for held in self.held if held.trained and not held.is_factored(least)]
        return max(sum(self._part(held, rank) for held in members) for rank in ranks)

    def _part(self, held: Held, rank: int) -> int:
        """Elements of a rank's part of a parameter under ZeRO 3, without padding."""
        start = rank // (self.layout.gpus // held.replicas) * held.partition_numel
        return max(0, min(start + held.partition_numel, held.numel) - start)


def is_product(held: Held) -> bool:
    """Return whether autocast computes products with a parameter: its gradient may then be reduced in bf16."""
    return held.shape.family in LOW_PRECISION_FAMILIES and "hidden_bias" not in held.shape.name


def moments_bytes(optimizer: str, numel: int) -> int:
    """Return the bytes of AdamW's moments of one tensor: fp32 and a counter or, of bitsandbytes, 8 bits in blocks."""
    if optimizer == "adamw":
        return 8 * numel + 4
    if numel < EIGHT_BIT_SMALLEST:
        return 8 * numel
    return 2 * numel + 8 * -(-numel // EIGHT_BIT_BLOCK)
