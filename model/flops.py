"""Floating-point operations of the model, counted from its configuration and the shapes of a batch alone.

Counted are 2 FLOPs per multiply-add of every matrix product: projections, attention over all keys (masked ones too),
feed-forwards, routers, the rows of experts, the output head. Element-wise work, softmax and look-ups are not.

Shape suffixes: L = encoder positions, M = decoder positions.
"""

from dataclasses import dataclass
from fractions import Fraction

from model.architecture import Architecture, documented_fields
from model.capacity import expert_capacity, group_tokens


@dataclass(frozen=True)
class ForwardFlops:
    """FLOPs of a forward pass over a batch, by part of the model."""

    attention: int
    feed_forward: int  # dense ones, those beside sparse ones included
    router: int
    experts: int
    head: int
    last: int  # of the dense products that end blocks, a part of ``feed_forward``; 0 with dropout after them

    @property
    def total(self) -> int:
        """All parts together."""
        return self.attention + self.feed_forward + self.router + self.experts + self.head

    def training(self, *, recomputed: bool = False) -> int:
        """Return the FLOPs of forward and backward pass: a product's gradients are two products of its size.

        Args:
            recomputed: whether the backward pass first repeats the forward pass of every block (activation
                checkpointing), but for ``last``, whose results nothing needs. The head is in no block.
        """
        return 3 * self.total + (self.total - self.head - self.last if recomputed else 0)


def forward_flops(
    config: Architecture, sequences: int, inputs: int, targets: int, *, expert_rows: float | None = None
) -> ForwardFlops:
    """Count a forward pass.

    Args:
        config: the model's.
        sequences: of the batch.
        inputs: L, padding included.
        targets: M, padding included.
        expert_rows: rows that all experts of all sparse layers process; None: ``buffer_rows`` in training. With the
            served choices only, the result is the useful work: rows without a token are not counted.
    """
    d, inner = config.d_model, config.num_heads * config.d_kv
    assert config.num_decoder_layers is not None
    tokens, memory = (sequences * length for length in (inputs, targets)), sequences * inputs
    one = feed_forward_flops(config)
    attention = dense = router = last = 0
    for decoder, (layers, length, positions) in enumerate(
        zip((config.num_layers, config.num_decoder_layers), (inputs, targets), tokens, strict=True)
    ):
        sparse = sum(map(config.is_sparse_layer, range(layers)))
        attention += layers * (8 * positions * d * inner + 4 * positions * length * inner)
        if decoder:
            attention += layers * (4 * (positions + memory) * d * inner + 4 * positions * inputs * inner)
        beside = sparse if config.extra_feed_forward != "none" else 0
        dense += (layers - sparse + beside) * positions * one
        if not config.dropout_rate:
            ending = layers - (0 if config.extra_feed_forward == "after" else sparse)
            last += ending * positions * 2 * config.d_model * config.d_ff
        router += sparse * 2 * positions * d * config.num_experts
    rows = buffer_rows(config, sequences, inputs, targets) if expert_rows is None else expert_rows
    return ForwardFlops(
        attention=attention,
        feed_forward=dense,
        router=router,
        experts=int(rows * one),
        head=2 * sequences * targets * d * config.vocab_size,
        last=last,
    )


def feed_forward_flops(config: Architecture) -> int:
    """Return the forward FLOPs of a dense feed-forward, or of one expert, per row."""
    return 2 * (3 if config.feed_forward == "geglu" else 2) * config.d_model * config.d_ff


def buffer_rows(config: Architecture, sequences: int, inputs: int, targets: int, *, training: bool = True) -> int:
    """Return the rows that the experts of all sparse layers are given: all capacity slots, filled or not.

    Without a capacity (``dropless``) it depends on the tokens; returned is the most: ``top_n`` rows for each position.
    """
    assert config.num_decoder_layers is not None
    total = 0
    for decoder, layers, length in ((False, config.num_layers, inputs), (True, config.num_decoder_layers, targets)):
        if sparse := sum(map(config.is_sparse_layer, range(layers))):
            total += sparse * layer_rows(config, sequences * length, decoder=decoder, training=training)
    return total


def layer_rows(config: Architecture, tokens: int, *, decoder: bool, training: bool = True) -> int:
    """Return the rows that the experts of one sparse layer are given for these tokens, see ``buffer_rows``."""
    if config.capacity == "dropless":
        return tokens * config.top_n
    size = group_tokens(tokens, config.group_size)
    return tokens // size * config.num_experts * expert_capacity(config, size, training=training, decoder=decoder)


def equal_flops_width(
    config: Architecture,
    wanted: float,
    sequences: int,
    inputs: int,
    targets: int,
    *,
    multiple: int = 8,
    tolerance: float = 0.01,
) -> int:
    """Return the ``d_ff`` with which a forward pass has the wanted FLOPs, so that two models can be compared.

    All feed-forwards and experts of a model have the same width, and its FLOPs grow by the same number with each unit
    of it: the width is solved for, and rounded to the nearest multiple.

    Args:
        config: the model to fit; its own ``d_ff`` does not matter.
        wanted: total FLOPs of a forward pass of the model to compare with, see ``forward_flops``.
        sequences: of the batch that both are counted for.
        inputs: L.
        targets: M.
        multiple: of which the width is one.
        tolerance: largest difference of the FLOPs, as a share of ``wanted``.

    Raises:
        ValueError: no width of that multiple is near enough, as where the rest of the model alone has more FLOPs.
    """
    fields = {field.name: getattr(config, field.name) for field in documented_fields()}

    def total(width: int) -> int:
        sized = Architecture(**fields | {"d_ff": width})
        return forward_flops(sized, sequences, inputs, targets).total

    one, two = total(2 * multiple), total(4 * multiple)
    slope = Fraction(two - one, 2 * multiple)
    exact = 2 * multiple + (Fraction(wanted) - one) / slope
    width = max(1, round(exact / multiple)) * multiple
    found = total(width)
    if abs(found - wanted) > tolerance * wanted:
        raise ValueError(
            f"no model.d_ff that is a multiple of {multiple} gives {wanted:.4g} FLOPs within {tolerance:.0%}: the "
            f"nearest, {width}, gives {found:.4g}"
        )
    return width
