"""What a sparse layer keeps: router, routing, dispatch, all-to-all, experts, combine.

Shape suffixes of the text: T = tokens, d = d_model, F = d_ff, E = experts, L = experts of this rank, N = choices of a
token, R = rows of the experts' buffer.
"""

from model.architecture import Architecture
from model.capacity import expert_capacity, group_tokens
from training.planning.kept.dense import Stack, dropout, norm
from training.planning.kept.piece import Piece
from training.planning.kept.widths import BOOL, FLOAT, INT64, Widths

GPU_BLOCK = 1 << 14  # tokens whose router inputs are cast at a time, see ``model.moe.router_product``


def choices(model: Architecture, widths: Widths, stack: Stack) -> int:
    """Return N: the experts that a token may have; with expert choice, what its tensors have room for.

    On a GPU they have room for all experts; on a CPU for the most that any token got, which depends on the tokens:
    returned is twice the mean.
    """
    if model.stack_gating(decoder=stack.decoder) != "expert_choice":
        return model.top_n
    mean = slots(model, stack) / stack.tokens
    return model.num_experts if widths.gpu else min(model.num_experts, round(2 * mean) + 1)


def slots(model: Architecture, stack: Stack) -> int:
    """Return the capacity slots of all experts and groups of a call in training."""
    size = group_tokens(stack.tokens, model.group_size)
    capacity = expert_capacity(model, size, training=True, decoder=stack.decoder)
    return stack.tokens // size * model.num_experts * capacity


def rows(model: Architecture, widths: Widths, stack: Stack, expert_parallel: int) -> int:
    """Return R: all capacity slots or, where the code leaves empty ones out, the rows of tokens.

    Those depend on the routing. Returned is what balanced loads and granted requests give: ``top_n`` rows for each
    position, but no more than there are slots.
    """
    by_token = model.stack_gating(decoder=stack.decoder) != "expert_choice"
    requests = model.top_n * stack.tokens
    if model.capacity == "dropless":
        return requests
    skips_empty = not widths.gpu and expert_parallel == 1
    return min(requests, slots(model, stack)) if by_token and skips_empty else slots(model, stack)


def sparse(model: Architecture, widths: Widths, stack: Stack, expert_parallel: int, chunks: int) -> list[Piece]:
    """Count a sparse layer with its norm and dropout, on a rank that holds E / ``expert_parallel`` experts."""
    T, d = stack.tokens, model.d_model
    N, R = choices(model, widths, stack), rows(model, widths, stack, expert_parallel)
    row = d * widths.product
    one_group = expert_parallel == 1
    ragged = model.capacity == "dropless" or (not widths.gpu and one_group)
    # The rows that came are kept sorted by expert; while they are exchanged, there are up to two copies more.
    local = model.num_experts // expert_parallel // chunks
    copies = 0 if one_group else (1 if local == 1 and not ragged else 2) + (chunks > 1)
    combined = Piece(
        {"combine": R * row + dropout(model, widths, T * d, widths.product)}, forward=T * row, backward=(R + T) * row
    )
    exchange = Piece({}, forward=copies * R * row, backward=copies * R * row)
    return [
        norm(model, widths, T, "router"),
        _router(model, widths, stack, N),
        Piece({"dispatch": (N * T + R) * INT64}, forward=T * row, backward=T * row + T * d * widths.stream),
        exchange,
        _experts(model, widths, R, model.num_experts // expert_parallel, ragged=ragged),
        exchange,
        combined,
    ]


def _router(model: Architecture, widths: Widths, stack: Stack, N: int) -> Piece:
    """Count the router's product and the routing; in float32 but for what it keeps of bf16 inputs."""
    T, d, E = stack.tokens, model.d_model, model.num_experts
    inputs, weight = T * d * widths.stream, 0
    if model.router_jitter:
        inputs = 2 * T * d * FLOAT  # the noise, and its product with the inputs
    elif model.router_precision == "bf16":
        inputs = T * d * 2
    if widths.weight != FLOAT or model.router_precision == "bf16":
        weight = E * d * (2 if model.router_precision == "bf16" else FLOAT)
    logits, gates = T * E * FLOAT, N * T * FLOAT
    if widths.routes_by_kernel(model, decoder=stack.decoder):
        # logits, experts, positions, whether kept, gates; slots are dispatch's
        routing = logits + 2 * N * T * INT64 + N * T * BOOL + gates + T * BOOL
        beside = 2 * N * T * (FLOAT + INT64)
    else:
        by_expert = model.stack_gating(decoder=stack.decoder) == "expert_choice"
        order = T * E * INT64 if by_expert else N * T * INT64  # of the experts of each token
        routing = 2 * logits + order + N * T * BOOL + 3 * gates + T * 3 * FLOAT
        beside = (5 * T * E if by_expert else 6 * N * T) * INT64 + logits
    return Piece({"router": inputs + weight + routing}, forward=beside, backward=2 * logits + T * d * widths.stream)


def _experts(model: Architecture, widths: Widths, R: int, local: int, *, ragged: bool) -> Piece:
    """Count the experts of a rank on R rows."""
    d, F = model.d_model, model.d_ff
    gated, biased = model.feed_forward == "geglu", model.feed_forward_bias
    weights = local * (3 if gated else 2) * d * F
    one, row = R * F * widths.product, R * d * widths.product
    cast = weights * widths.product if widths.autocast else 0
    grouped = widths.groups_experts(model)
    kept_casts = 0
    if grouped:
        hidden = 2 * one if gated else one
        # hidden activation and gradients of it and of both products; under autocast the weights and their gradients in
        # the lower precision
        backward = (4 * one if gated else one) + 2 * row + 2 * cast
        forward = one + cast + row
        hidden += R * BOOL if ragged else 0
    elif biased == "none":
        hidden = 3 * one if gated else one
        scratch = 3 * F * d * widths.product if widths.autocast else 0
        backward, forward = row + scratch + 3 * one // max(1, local), row + scratch + one // max(1, local)
    else:
        hidden = (4 if gated else 1) * one + (one if biased == "multiplicative" else 0)
        kept_casts = cast
        # At the end the gradients of all experts' weights, each its own tensor, in place of what was kept.
        backward = row + max(3 * one // max(1, local), weights * widths.weight - kept_casts - hidden)
        forward = one + row
    hidden += one if model.expert_dropout_rate else 0
    parts = {"expert_rows": row, "expert_hidden": hidden, "weight_casts": kept_casts}
    return Piece(parts, forward, backward)
