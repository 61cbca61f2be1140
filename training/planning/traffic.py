"""Bytes that one GPU exchanges in a training step, by kind of collective, and the time that they take at least.

Counted is what a collective is called with, as DeepSpeed's communication logger counts it: of an all-reduce and a
reduce-scatter their input, of an all-gather its output, of an all-to-all what is sent, to the rank itself too. In a
group of n ranks at least 2 (n - 1) / n of an all-reduce, (n - 1) / n of the others, cross a GPU's links (Thakur et al.
2005, "Optimization of collective communication operations in MPICH"; the factors of the bus bandwidth in NCCL's tests).

Left out are messages of a few numbers: norms, counts of tokens, columns of metrics.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from model.flops import layer_rows
from training.config.run import RunConfig
from training.planning.cards import Card
from training.planning.cost import example_lengths
from training.planning.gathers import gather
from training.planning.groups import Group, Held, ZeroOptions, optimizer_groups, sub_groups
from training.planning.layout import Layout
from training.planning.states import SIZES, is_product

Kind = Literal["all_to_all", "all_reduce", "reduce_scatter", "all_gather"]
COUNT_BYTES = 8  # of an expert's number of rows, which ranks tell each other where the number is not fixed


@dataclass(frozen=True)
class Message:
    """All collectives of one kind, purpose and group in a step."""

    kind: Kind
    purpose: str
    ranks: int  # of the group; 2 or more
    experts: bool  # whether the group is one over which experts are split (all-to-all) or copied
    bytes: int

    @property
    def on_links(self) -> float:
        """Bytes that a GPU sends over its links, at least."""
        return self.bytes * (self.ranks - 1) / self.ranks * (2 if self.kind == "all_reduce" else 1)


@dataclass(frozen=True)
class Traffic:
    """The messages of a step of one GPU."""

    messages: tuple[Message, ...]

    def bytes_of(self, kind: Kind, purpose: str | None = None) -> int:
        """Return the bytes of a kind, or of its messages of one purpose."""
        return sum(m.bytes for m in self.messages if m.kind == kind and purpose in (None, m.purpose))

    def seconds_of(self, kind: Kind, layout: Layout, card: Card) -> float:
        """Return how long the links are busy with the messages of a kind."""
        return sum(seconds(m, layout, card) for m in self.messages if m.kind == kind)

    def as_row(self, layout: Layout, card: Card) -> list[dict[str, Any]]:
        """Return the messages with their times, for JSON."""
        return [
            asdict(m) | {"on_links_bytes": round(m.on_links), "seconds": seconds(m, layout, card)}
            for m in self.messages
        ]


def seconds(message: Message, layout: Layout, card: Card) -> float:
    """Return the least time of a message at the card's bandwidths.

    Within a node everything travels at its bandwidth. In an all-to-all over several nodes each rank sends a share to
    each rank: what goes to other nodes travels at the network's bandwidth, and the slower part counts. Rings of the
    other collectives pass from node to node through the adapters of all their ranks in a node at once, so that a GPU
    sends at the network's bandwidth times these ranks, but no faster than within a node.
    """
    node, network = card.node_gbs * 1e9, card.network_gbs * 1e9
    within = min(layout.gpus_per_node, layout.gpus)
    if message.kind == "all_to_all":
        # Consecutive ranks.
        here = min(message.ranks, within)
        outside = message.bytes * (message.ranks - here) / message.ranks
        return max(outside / network, message.bytes * (here - 1) / message.ranks / node)
    # Ranks that hold the same experts lie expert_parallel_size apart.
    here = max(1, within // layout.expert_parallel_size) if message.experts else within
    here = min(here, message.ranks)
    if here == message.ranks:
        return message.on_links / node
    return message.on_links / min(node, network * here)


def traffic_of(config: RunConfig, layout: Layout) -> Traffic:
    """Return the messages of a training step, the second or a later one.

    Raises:
        ConfigError: the DeepSpeed file is broken.
    """
    found = [*_all_to_alls(config, layout), *_Reductions(config, layout).messages()]
    return Traffic(tuple(message for message in found if message.ranks > 1 and message.bytes))


def _all_to_alls(config: RunConfig, layout: Layout) -> Iterator[Message]:
    """Rows go to their experts and back, and their gradients too; recomputation repeats the forward pass."""
    model, size = config.architecture(), layout.expert_parallel_size
    layers = model.sparse_layer_names()
    if not layers:
        return
    lengths = example_lengths(config.data)
    rows = [
        layer_rows(model, layout.micro_batch_size * lengths[decoder], decoder=decoder)
        for decoder in (layer.startswith("decoder") for layer in layers)
    ]
    forward = 2 * (2 if layout.recompute else 1)
    passes = (forward + 2) * sum(rows)
    if config.training.trainable == "moe":
        passes -= rows[0]  # nothing is trained before the first sparse layer, whose inputs get no gradient
    width = model.d_model * (4 if layout.precision == "fp32" else 2)
    yield Message("all_to_all", "rows of experts", size, True, layout.accumulation * passes * width)
    if model.capacity == "dropless":
        told = len(layers) * model.num_experts * COUNT_BYTES * forward // 2
        yield Message("all_to_all", "numbers of rows", size, True, layout.accumulation * told)


class _Reductions:
    """Sums of gradients, and weights that are gathered."""

    def __init__(self, config: RunConfig, layout: Layout):
        self.config, self.layout, self.options = config, layout, ZeroOptions.of(config, layout)
        self.groups = optimizer_groups(config, layout)
        self.weight = 2 if layout.precision == "bf16" else 4
        self.stage = layout.zero_stage

    def messages(self) -> Iterator[Message]:
        yield from self._at_stage_3() if self.stage == 3 else self._up_to_stage_2()
        if self.config.optimizer.name == "adafactor" and self.stage:
            yield from self._adafactor()

    def _up_to_stage_2(self) -> Iterator[Message]:
        times = self.layout.accumulation if self.stage == 2 else 1
        for group in self.groups:
            experts = group.members[0].shape.by_expert
            if self._keeps_sums():
                reduced = group.padded * SIZES[self.config.training.gradient_reduce_dtype]
            else:
                reduced = sum(held.numel * self._reduced_size(held) for held in group.members)
            yield Message("all_reduce", "gradients", group.replicas, experts, times * reduced)
            if self.stage:
                yield Message("all_gather", "weights", group.replicas, experts, group.padded * self.weight)

    def _keeps_sums(self) -> bool:
        """Whether DeepSpeed's BF16_Optimizer reduces flat sums, with their padding."""
        fp32 = self.config.training.gradient_accumulate_dtype == "fp32"
        return self.stage == 1 and self.layout.precision == "bf16" and fp32

    def _reduced_size(self, held: Held) -> int:
        if self.config.training.gradient_reduce_dtype == "fp32":
            return 4
        low = self.stage == 0 or self.layout.precision != "bf16_autocast" or is_product(held)
        return 2 if low else 4

    def _at_stage_3(self) -> Iterator[Message]:
        times = self.layout.accumulation
        for group in self.groups:
            experts = group.members[0].shape.by_expert
            scattered = sum(self._whole(held) * self._reduced_size(held) for held in group.members)
            yield Message("reduce_scatter", "gradients", group.replicas, experts, times * scattered)
        gathered = gather(self.config, self.layout)
        dense, experts_ = (
            sum(self._whole(h) * self._gathered_size(h) for h in gathered.in_micro_batch if h.shape.by_expert == split)
            for split in (False, True)
        )
        yield Message("all_gather", "weights", self.layout.gpus, False, times * dense)
        yield Message("all_gather", "weights", self.layout.expert_replicas, True, times * experts_)
        for split in (False, True):
            after = sum(self._whole(held) for held in gathered.after_step if held.shape.by_expert == split)
            ranks = self.layout.expert_replicas if split else self.layout.gpus
            yield Message("all_gather", "small weights", ranks, split, after * self.weight)

    @staticmethod
    def _whole(held: Held) -> int:
        return held.partition_numel * held.replicas

    def _gathered_size(self, held: Held) -> int:
        autocast = self.layout.precision == "bf16_autocast"
        low = autocast and self.config.training.gradient_reduce_dtype == "bf16" and is_product(held)
        return 2 if low else self.weight

    def _adafactor(self) -> Iterator[Message]:
        """Sums of squares of rows and columns, then two numbers of each unit, of every partition."""
        least = self.config.optimizer.min_dim_size_to_factor
        for group in self.groups:
            for members in self._partitions(group):
                numbers = sum(
                    held.units * (2 + (sum(held.unit_shape) if held.is_factored(least) else 0)) for held in members
                )
                yield Message("all_reduce", "second moments", group.replicas, members[0].shape.by_expert, 4 * numbers)

    def _partitions(self, group: Group) -> list[list[Held]]:
        if self.stage < 3:
            return [list(group.members)]
        return sub_groups(group, self.options.sub_group)
