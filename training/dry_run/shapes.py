"""The shapes of a micro-batch: positions, routing groups, capacity, rows that travel. Without torch."""

from typing import Any, NamedTuple

from model.capacity import expert_capacity, group_tokens
from model.flops import layer_rows
from training.config.run import RunConfig
from training.planning.cost import example_lengths


class Stack(NamedTuple):
    """A micro-batch in one of the stacks."""

    sequences: int
    length: int  # positions of a sequence, padding included
    groups: int  # of routing; 0 without sparse layers
    size: int  # tokens of a group
    capacity: int  # slots per expert and group
    rows: int  # that a sparse layer's experts are given, over all experts

    def as_row(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return self._asdict()


def shapes_of(config: RunConfig) -> dict[str, Stack]:
    """Return the shapes of a training micro-batch by stack."""
    model, sequences = config.architecture(), config.training.micro_batch_size
    stacks = {}
    for name, length in zip(("encoder", "decoder"), example_lengths(config.data), strict=True):
        tokens, decoder = sequences * length, name == "decoder"
        if not any(layer.startswith(name) for layer in model.sparse_layer_names()):
            stacks[name] = Stack(sequences, length, 0, 0, 0, 0)
            continue
        size = group_tokens(tokens, model.group_size)
        capacity = expert_capacity(model, size, training=True, decoder=decoder)
        stacks[name] = Stack(
            sequences, length, tokens // size, size, capacity, layer_rows(model, tokens, decoder=decoder)
        )
    return stacks
