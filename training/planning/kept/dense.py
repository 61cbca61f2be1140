"""What attention, dense feed-forwards and norms keep.

Shape suffixes of the text: T = tokens, d = d_model, N = heads x d_kv, F = d_ff, B = sequences, Q = queries, K = keys.
"""

from dataclasses import dataclass

from model.architecture import Architecture
from training.planning.kept.piece import Piece
from training.planning.kept.widths import BOOL, FLOAT, Widths

ALIGNED_QUERIES = 32  # to which the fused kernel rounds the length of its logsumexp
ALIGNED_KEYS = 8  # see ``model.layers.attention``


@dataclass(frozen=True)
class Stack:
    """The encoder or the decoder of one micro-batch.

    Args:
        decoder: which of the two.
        blocks: their number.
        sequences: of the micro-batch.
        length: positions of a sequence.
        memory: positions of the encoder's output; 0 in the encoder.
    """

    decoder: bool
    blocks: int
    sequences: int
    length: int
    memory: int = 0

    @property
    def tokens(self) -> int:
        """Positions of all sequences."""
        return self.sequences * self.length

    @property
    def name(self) -> str:
        """``encoder`` or ``decoder``."""
        return "decoder" if self.decoder else "encoder"


def dropout(model: Architecture, widths: Widths, numbers: int, width: int) -> int:
    """Return what dropout of ``numbers`` keeps: on a GPU a mask, on a CPU a factor of the numbers' own ``width``."""
    return numbers * (BOOL if widths.gpu else width) if model.dropout_rate else 0


def norm(model: Architecture, widths: Widths, tokens: int, part: str) -> Piece:
    """Count a norm: it keeps its input, of the residual stream, and the inverse of its size in float32."""
    stream = tokens * model.d_model * widths.stream
    return Piece({part: stream + tokens * FLOAT}, forward=stream, backward=(2 if widths.gpu else 4) * stream)


def self_attention(model: Architecture, widths: Widths, stack: Stack) -> list[Piece]:
    """Count self-attention with its norm and dropout."""
    B, L, T, H = stack.sequences, stack.length, stack.tokens, model.num_heads
    inner = H * model.d_kv
    of_input, product = T * model.d_model, T * inner * widths.product
    saved = of_input * (widths.product if widths.keeps_casts else widths.linear_input)
    saved += product  # the result, which the output projection keeps
    if widths.gpu:
        saved += 3 * product + B * H * _rounded(L, ALIGNED_QUERIES) * FLOAT
        layers_bias = B * H * L * _rounded(L, ALIGNED_KEYS) * widths.product
        backward = max(4 * product + layers_bias, 6 * product + of_input * widths.stream)
        forward = of_input * widths.stream
    else:
        # In float32 throughout; where products are in bf16, these are copies.
        probs = B * H * L * L * FLOAT
        saved += 3 * T * inner * FLOAT + probs
        backward = 2 * probs + 4 * T * inner * FLOAT
        forward = probs + T * inner * FLOAT
    saved += dropout(model, widths, of_input, widths.product)
    parts = {"attention": saved, "weight_casts": _casts(widths, 4 * model.d_model * inner)}
    return [norm(model, widths, T, "attention"), Piece(parts, forward, backward)]


def cross_attention(model: Architecture, widths: Widths, stack: Stack) -> list[Piece]:
    """Count cross-attention with its norm and dropout; the encoder's output is not its own."""
    B, Q, T, H = stack.sequences, stack.length, stack.tokens, model.num_heads
    inner = H * model.d_kv
    product, of_memory = T * inner * widths.product, B * stack.memory * inner * widths.product
    saved = T * model.d_model * (widths.product if widths.keeps_casts else widths.linear_input)
    saved += 2 * product + 2 * of_memory + B * H * (_rounded(Q, ALIGNED_QUERIES) if widths.gpu else Q) * FLOAT
    saved += dropout(model, widths, T * model.d_model, widths.product)
    joined = 2 if widths.keeps_casts else 1  # the gradients of keys and values are joined for one product
    memory_gradient = B * stack.memory * model.d_model * widths.stream
    backward = 2 * product + 2 * joined * of_memory + memory_gradient
    parts = {"attention": saved, "weight_casts": _casts(widths, 4 * model.d_model * inner)}
    return [norm(model, widths, T, "attention"), Piece(parts, T * model.d_model * widths.stream, backward)]


def bias_gradient(model: Architecture, widths: Widths, stack: Stack) -> int:
    """Return the bytes of the gradient of the position bias, which adds up over the layers of a stack.

    The encoder's bias has the padding of each sequence in it, the decoder's is the same for all.
    """
    sequences = 1 if stack.decoder else stack.sequences
    keys = _rounded(stack.length, ALIGNED_KEYS) if widths.gpu else stack.length
    return sequences * model.num_heads * stack.length * keys * (widths.product if widths.gpu else FLOAT)


def feed_forward(model: Architecture, widths: Widths, tokens: int, part: str) -> list[Piece]:
    """Count a dense feed-forward with its norm and dropout."""
    T, d, F = tokens, model.d_model, model.d_ff
    one = T * F * widths.product
    gated, biased = model.feed_forward == "geglu", model.feed_forward_bias
    casts = (3 if gated else 2) * d * F
    if gated and biased == "none" and widths.keeps_casts:
        saved = T * d * widths.product + 3 * one  # one tensor of two products, and the hidden activation
        backward = 3 * one + T * d * widths.stream
    else:
        inputs = 2 if gated and widths.keeps_casts else 1  # every product makes its own cast
        saved = inputs * T * d * widths.linear_input + (4 if gated else 1) * one
        backward = (3 if gated else 1) * one + 2 * T * d * widths.stream
        if biased == "multiplicative":  # keeps its input; its output is float32 under autocast, and cast
            saved += T * F * (FLOAT if widths.autocast and widths.zero3 else widths.product)
        elif biased == "additive" and widths.autocast and widths.zero3:
            saved += T * F * FLOAT - one
    saved += dropout(model, widths, T * d, widths.product)
    parts = {part: saved, "weight_casts": _casts(widths, casts)}
    return [norm(model, widths, T, part), Piece(parts, one, backward)]


def _casts(widths: Widths, weights: int) -> int:
    return weights * widths.product if widths.keeps_casts else 0


def _rounded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
