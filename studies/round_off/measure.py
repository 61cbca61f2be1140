"""Measures a sparse layer in several precisions against float64, as its router's logits grow.

Shape suffixes: T = tokens, E = experts, d = d_model.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from model.config import StMoeConfig
from model.initialization import initialize_weights
from model.moe.layer import SparseFeedForward
from studies.round_off.laws import predict
from studies.round_off.rounding import (
    PRECISIONS,
    REFERENCE,
    SOFTMAX_INPUT,
    Decisions,
    Precision,
    Weights,
    combine,
    decide,
    expert_outputs,
)
from studies.round_off.rows import Row

FACTORS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
OFFSETS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
OFFSET_FACTOR = 10.0  # of initial weights whose logits are shifted: logits that differ by about 1
LAW = "law"  # in place of a precision's name


def random_layer(config: StMoeConfig, tokens: int, seed: int) -> tuple[Tensor, Weights]:
    """Return random normalized tokens, float32 ``[T, d]``, and the initial weights of a sparse layer."""
    layer = SparseFeedForward(config)
    initialize_weights(layer, config, seed)
    x_Td = torch.randn(tokens, config.d_model, generator=torch.Generator().manual_seed(seed))
    return x_Td / x_Td.square().mean(-1, keepdim=True).sqrt(), weights_of(layer)


def weights_of(layer: SparseFeedForward) -> Weights:
    """Return the weights of a sparse layer with all experts in this process."""
    experts = layer.experts
    return Weights(*(w.detach().float() for w in (layer.router.weight, experts.w1, experts.w3, experts.w2)))


def measure_random(config: StMoeConfig, tokens: int, draws: int) -> Iterator[Row]:
    """Yield the rows of several draws of ``random_layer``, with the number of the ``draw``."""
    for draw in range(draws):
        for row in measure_layer(*random_layer(config, tokens, draw), config.top_n, OFFSET_FACTOR):
            yield {"draw": draw, **row}


@torch.no_grad()
def measure_layer(x_Td: Tensor, weights: Weights, top_n: int, offset_factor: float = 1.0) -> Iterator[Row]:
    """Yield a row per factor of the router's weights and precision, and per offset of the logits; see ``compare``.

    Args:
        x_Td: inputs of the layer, float32.
        weights: of the layer.
        top_n: experts of a token.
        offset_factor: of the router's weights whose logits are shifted.
    """
    exact_TEd = expert_outputs(x_Td, weights, REFERENCE)
    outputs = {precision: expert_outputs(x_Td, weights, precision) for precision in PRECISIONS}
    shifted = [(offset_factor, offset) for offset in OFFSETS]
    for factor, offset in [*((factor, 0.0) for factor in FACTORS), *shifted]:
        exact = decide(x_Td, weights.router_Ed, top_n, REFERENCE, factor=factor, offset=offset)
        exact_Td = combine(exact_TEd, exact, REFERENCE)
        setting = {"factor": factor, "offset": offset, **logit_sizes(exact.logits_TE)}
        for precision in PRECISIONS if offset == 0 else (PRECISIONS[0], SOFTMAX_INPUT):
            decisions = decide(x_Td, weights.router_Ed, top_n, precision, factor=factor, offset=offset)
            y_Td = combine(outputs[precision], decisions, precision)
            yield {**setting, "precision": precision.name, **compare(decisions, exact), **output_error(y_Td, exact_Td)}
        if top_n == 2 and len(weights.router_Ed) > 2:
            yield {**setting, "precision": LAW, **predict(exact.logits_TE)._asdict()}


def logit_sizes(logits_TE: Tensor) -> Row:
    """Return the largest and the mean absolute logit, and the mean square of their logsumexp."""
    return {
        "max_abs_logit": logits_TE.abs().max().item(),
        "mean_abs_logit": logits_TE.abs().mean().item(),
        "logsumexp_square": logits_TE.logsumexp(-1).square().mean().item(),
    }


def compare(decisions: Decisions, exact: Decisions) -> Row:
    """Compare a router's decisions with the exact ones.

    Returns:
        ``flips_first``, ``flips_second``: share of tokens whose first or second expert is another one (the second only
        where there are two); ``gate_error``, ``gate_error_max``: half the sum over experts of the absolute difference
        of their gates, a number in [0, 1], mean and largest of all tokens.
    """
    flipped_NT = (decisions.expert_NT != exact.expert_NT).double()
    error_T = (decisions.gates_of_experts() - exact.gates_of_experts()).abs().sum(-1) / 2
    names = ("flips_first", "flips_second")
    flips = {name: flipped_T.mean().item() for name, flipped_T in zip(names, flipped_NT, strict=False)}
    return {**flips, "gate_error": error_T.mean().item(), "gate_error_max": error_T.max().item()}


def output_error(y_Td: Tensor, exact_Td: Tensor) -> Row:
    """Return the relative error of the outputs, by the norms of all tokens together."""
    return {"output_error": ((y_Td.double() - exact_Td).norm() / exact_Td.norm()).item()}


def precision_of(name: str) -> Precision:
    """Return the precision of a row."""
    return next(precision for precision in PRECISIONS if precision.name == name)
