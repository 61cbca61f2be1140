"""The memory that a micro-batch takes on one GPU beside the model's states: a count of what the code keeps.

Two figures are given. ``saved``: what autograd keeps from the forward to the backward pass, alive when the loss is
known. ``peak``: the most that is alive at any time of the micro-batch, which is what must fit on the card; it lies in
the backward pass, where what is kept meets the tensors that the backward pass of one piece of the model makes.

Not counted are the gradients of weights, ZeRO's buffers and the weights that it gathers, which are states, and what a
memory allocator loses between tensors. Lengths are those of the configuration, all positions filled; the loads of the
experts are balanced. Frozen parameters and compiled blocks are counted as trained ones and as blocks that are not
compiled, which keep more.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from model.architecture import Architecture
from model.size import parameter_shapes
from training.config.run import RunConfig
from training.planning.cost import example_lengths
from training.planning.kept import dense, ends
from training.planning.kept.dense import Stack
from training.planning.kept.piece import Piece, highest, total
from training.planning.kept.sparse import sparse
from training.planning.kept.widths import Device, Widths, widths_of
from training.planning.layout import Layout


@dataclass(frozen=True)
class Moment:
    """Where memory is highest in the backward pass of the loss or of one block.

    Args:
        where: ``loss``, or a block such as ``encoder 11``.
        parts: bytes by part, see ``Activations.parts``.
        weights: elements of the rank's weights whose gradients this backward pass has made before.
    """

    where: str
    parts: Counter[str]
    weights: int

    @property
    def bytes(self) -> int:
        """All parts together."""
        return self.parts.total()


@dataclass(frozen=True)
class Activations:
    """Bytes on one GPU in a micro-batch.

    Args:
        moments: of the backward pass, in their order: the loss, the decoder's blocks from the last on, the encoder's.
        saved: what is alive when the loss is known.
        weights: elements of the rank's weights.
    """

    moments: tuple[Moment, ...]
    saved: int
    weights: int

    @property
    def highest(self) -> Moment:
        """The moment of the peak."""
        return max(self.moments, key=lambda moment: moment.bytes)

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        return self.highest.bytes

    @property
    def parts(self) -> dict[str, int]:
        """Bytes at the peak by part of the model, without parts of 0 bytes.

        Kept: ``attention``, ``feed_forward``, ``extra_feed_forward``, ``router``, ``dispatch``, ``expert_rows``,
        ``expert_hidden``, ``combine`` (norms and dropout belong to what they stand before and after);
        ``block_inputs``, with recomputation, of blocks that are not computed again yet; ``embeddings``,
        ``position_bias``, ``encoder_output``, ``final_norms``, ``head``, ``logits``, ``loss``; ``weight_casts``, of
        weights in a lower precision. Beside that: ``stream_gradients`` (of the residual stream, the encoder's output
        and the position bias) and ``transient`` (tensors of one piece's backward pass, buffers of all-to-alls too).
        """
        return dict(+self.highest.parts)


def activations_of(config: RunConfig, layout: Layout, *, device: Device = "gpu") -> Activations:
    """Count the activations of one micro-batch.

    Args:
        config: of the run; what a layout says is not read from it.
        layout: gives precision, micro-batch, ZeRO stage, recomputation and how the experts are spread.
        device: whose code computes, see ``kept.widths``.
    """
    model, widths = config.architecture(), widths_of(layout.precision, layout.zero_stage, device)
    inputs, targets = example_lengths(config.data)
    assert model.num_decoder_layers is not None
    encoder = Stack(False, model.num_layers, layout.micro_batch_size, inputs)
    decoder = Stack(True, model.num_decoder_layers, layout.micro_batch_size, targets, memory=inputs)
    sizes = _sizes(model, layout)
    moments = tuple(_moments(model, widths, layout, (encoder, decoder), sizes))
    at_loss = moments[0]
    return Activations(moments, at_loss.bytes - at_loss.parts["transient"], sizes.total())


def block(model: Architecture, widths: Widths, layout: Layout, stack: Stack, index: int) -> list[Piece]:
    """Return the pieces of a block, in the order of its forward pass."""
    pieces = dense.self_attention(model, widths, stack)
    if stack.decoder:
        pieces += dense.cross_attention(model, widths, stack)
    if not model.is_sparse_layer(index):
        return pieces + dense.feed_forward(model, widths, stack.tokens, "feed_forward")
    experts = sparse(model, widths, stack, layout.expert_parallel_size, layout.all_to_all_chunks)
    extra = dense.feed_forward(model, widths, stack.tokens, "extra_feed_forward")
    if model.extra_feed_forward == "before":
        return pieces + extra + experts
    return pieces + experts + (extra if model.extra_feed_forward == "after" else [])


def _sizes(model: Architecture, layout: Layout) -> Counter[str]:
    """Return the weights of a rank by place: ``encoder 3``, and ``head``."""
    sizes: Counter[str] = Counter()
    for shape in parameter_shapes(model):
        stack, _, rest = shape.name.partition(".blocks.")
        place = f"{stack} {rest.partition('.')[0]}" if rest else shape.family
        sizes[place] += shape.numel // (layout.expert_parallel_size if shape.by_expert else 1)
    return sizes


def _moments(
    model: Architecture, widths: Widths, layout: Layout, stacks: tuple[Stack, Stack], sizes: Counter[str]
) -> Iterator[Moment]:
    """Yield what is alive in the backward pass of the loss and of each block, in their order."""
    loss = ends.loss(model, widths, stacks[1])
    blocks = {stack: [block(model, widths, layout, stack, i) for i in range(stack.blocks)] for stack in stacks}
    kept = {stack: [_kept(model, widths, layout, stack, pieces) for pieces in blocks[stack]] for stack in stacks}
    entrances = {stack: ends.entrance(model, widths, stack, recompute=layout.recompute) for stack in stacks}
    exits = {stack: ends.exit_of(model, widths, stack) for stack in stacks}
    alive = Counter(logits=loss.logits) + total([*entrances.values(), *exits.values()])
    for stack in stacks:
        alive += sum(kept[stack], Counter())
    yield Moment("loss", alive + Counter(loss.saved) + Counter(transient=loss.backward), 0)
    weights = sizes["head"]
    for stack in reversed(stacks):
        alive -= total([exits[stack]])
        stream = stack.tokens * model.d_model * widths.stream
        for index in reversed(range(stack.blocks)):
            pieces = blocks[stack][index]
            number, beside = highest(pieces, recomputed=layout.recompute)
            alive -= kept[stack][index]
            gradients = stream
            if index < stack.blocks - 1:  # those that add up over the blocks behind it
                gradients += dense.bias_gradient(model, widths, stack)
                gradients += stack.sequences * stack.memory * model.d_model * widths.stream
            now = alive + total(pieces[: number + 1])
            place = f"{stack.name} {index}"
            yield Moment(place, now + Counter(stream_gradients=gradients, transient=beside), weights)
            weights += sizes[place]
        alive -= total([entrances[stack]])


def _kept(model: Architecture, widths: Widths, layout: Layout, stack: Stack, pieces: list[Piece]) -> Counter[str]:
    """Return what is kept of a block from the forward to the backward pass."""
    if not layout.recompute:
        return total(pieces)
    return Counter(block_inputs=stack.tokens * model.d_model * widths.stream)
