"""What lies around the blocks: embeddings, position biases, the encoder's output, the head and the loss."""

from dataclasses import dataclass

from model.architecture import Architecture
from training.planning.kept.dense import ALIGNED_KEYS, Stack, dropout
from training.planning.kept.piece import Piece
from training.planning.kept.widths import BLOCK, BOOL, FLOAT, INT64, Widths


@dataclass(frozen=True)
class Loss:
    """The head and the loss. All figures are bytes.

    Args:
        saved: by part, until its backward pass.
        logits: kept as the output of the model until the step's end.
        backward: what its backward pass has at most beside that; not the gradient of the head's weights.
    """

    saved: dict[str, int]
    logits: int
    backward: int


def entrance(model: Architecture, widths: Widths, stack: Stack, *, recompute: bool) -> Piece:
    """Count the embedded tokens and the position bias, which all blocks of the stack share.

    On a CPU attention keeps the bias only as an argument of blocks that are to be computed again.
    """
    B, L, H = stack.sequences, stack.length, model.num_heads
    keys = -(-L // ALIGNED_KEYS) * ALIGNED_KEYS
    sequences = 1 if stack.decoder else B  # the encoder's bias has the padding of each sequence in it
    bias = sequences * H * L * keys * widths.product if widths.gpu or recompute else 0
    indices = L * L * INT64  # of the buckets
    masks = L * L * BOOL if stack.decoder else B * L * BOOL
    if stack.memory:
        masks += B * stack.memory * (BOOL + widths.product)
    embedded = stack.tokens * INT64 + dropout(model, widths, stack.tokens * model.d_model, widths.stream)
    return Piece({"position_bias": bias + indices + masks, "embeddings": embedded}, forward=indices * 2)


def exit_of(model: Architecture, widths: Widths, stack: Stack) -> Piece:
    """Count the final norm, its dropout and, of the encoder, the output, which the decoder keeps."""
    T, d = stack.tokens, model.d_model
    saved = {"final_norms": T * d * widths.stream + T * FLOAT + dropout(model, widths, T * d, widths.stream)}
    if not stack.decoder:
        # the output of the model, and beside it a copy in the type of products
        saved["encoder_output"] = T * d * (widths.stream + (widths.product if widths.autocast else 0))
    return Piece(saved, forward=T * d * widths.stream, backward=2 * T * d * widths.stream)


def loss(model: Architecture, widths: Widths, stack: Stack) -> Loss:
    """Count the head and the loss of the decoder's tokens."""
    T, d, V = stack.tokens, model.d_model, model.vocab_size
    logits = T * V * widths.product
    saved = {
        "head": T * d * widths.linear_input,
        "loss": T * (INT64 + BOOL + FLOAT),
        "weight_casts": V * d * widths.product if widths.keeps_casts else 0,
    }
    # In float32, beside the gradient of all logits: a block, and the one before it until this one is there.
    blocks = min(T * V, 2 * max(1, BLOCK[widths.device] // V) * V) * FLOAT if widths.product != FLOAT else 0
    in_blocks = logits + blocks
    # The gradient of the head's weights, if it is made in a lower precision.
    in_head = logits + (V * d * widths.product if widths.autocast else 0) + T * d * widths.stream
    return Loss(saved, logits, max(in_blocks, in_head))
