"""A sparse layer with chosen parts rounded to bf16: decisions of the router, gates and outputs.

A product in bf16 is modeled as hardware computes it: operands rounded to bf16, products and their sum in float32, the
result rounded to bf16. There is no capacity limit and every choice is requested, so that precision alone changes the
results.

Shape suffixes: T = tokens, E = experts, N = choices of a token, F = d_ff, d = d_model.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from model.layers.geglu import gelu
from model.moe.token_choice import choose_experts, normalize_gates


@dataclass(frozen=True)
class Precision:
    """What is rounded to bf16; all else is computed in ``dtype``.

    Args:
        name: in rows and tables.
        title: in pictures and tables.
        inputs, weights: operands of the router's product.
        logits: the router's logits, which are the softmax's input.
        gates: the router's probabilities and gates.
        experts: inputs, weights, hidden activations and outputs of the experts, and their weighted sum.
        dtype: of everything that is not rounded.
    """

    name: str
    title: str
    inputs: bool = False
    weights: bool = False
    logits: bool = False
    gates: bool = False
    experts: bool = False
    dtype: torch.dtype = torch.float32


REFERENCE = Precision("float64", "float64", dtype=torch.float64)
SOFTMAX_INPUT = Precision("softmax_input", "softmax's input in bf16", logits=True)
# The paper's selective precision is all but the router in bf16: activations arrive in bf16, the rest of the router is
# computed in float32.
PRECISIONS = (
    Precision("fp32", "fp32"),
    Precision("operands", "router's inputs and weights in bf16", inputs=True, weights=True),
    SOFTMAX_INPUT,
    Precision("router", "router in bf16", inputs=True, weights=True, logits=True, gates=True),
    Precision("selective", "all but the router in bf16", inputs=True, experts=True),
    Precision("everything", "all in bf16", inputs=True, weights=True, logits=True, gates=True, experts=True),
)


class Weights(NamedTuple):
    """Weights of a sparse layer with GEGLU experts, float32."""

    router_Ed: Tensor
    w_in_EFd: Tensor
    w_gate_EFd: Tensor
    w_out_EdF: Tensor


class Decisions(NamedTuple):
    """What a router decides, in the dtype of its precision."""

    logits_TE: Tensor
    expert_NT: Tensor  # int64, most probable first; the lower index wins ties
    gate_NT: Tensor

    def gates_of_experts(self) -> Tensor:
        """Return each expert's gate, float64 ``[T, E]``; 0 where it is not chosen."""
        gates_TE = torch.zeros(self.logits_TE.shape, dtype=torch.float64)
        return gates_TE.scatter_(1, self.expert_NT.T, self.gate_NT.T.double())


def to_bf16(x: Tensor, rounded: bool = True) -> Tensor:
    """Round to the nearest bf16 number, ties to even, and return the dtype of ``x``."""
    return x.bfloat16().to(x.dtype) if rounded else x


def decide(
    x_Td: Tensor, router_Ed: Tensor, top_n: int, precision: Precision, *, factor: float = 1.0, offset: float = 0.0
) -> Decisions:
    """Choose the experts of each token and compute their gates.

    Args:
        x_Td: inputs of the router, float32.
        router_Ed: weights of the router, float32.
        top_n: experts of a token.
        precision: what is rounded.
        factor: of the router's weights.
        offset: added to all logits before they are rounded; in exact arithmetic it changes no decision.
    """
    weight_Ed = router_Ed.to(precision.dtype) * factor
    operands = to_bf16(x_Td.to(precision.dtype), precision.inputs), to_bf16(weight_Ed, precision.weights)
    logits_TE = to_bf16(operands[0] @ operands[1].T + offset, precision.logits)
    probs_TE = to_bf16(logits_TE.softmax(-1), precision.gates)
    expert_NGT, prob_NGT = choose_experts(probs_TE.unsqueeze(0), top_n)
    gate_NT = to_bf16(normalize_gates(prob_NGT[:, 0]), precision.gates)
    return Decisions(logits_TE, expert_NGT[:, 0], gate_NT)


def expert_outputs(x_Td: Tensor, weights: Weights, precision: Precision) -> Tensor:
    """Return the output of every expert for every token, ``[T, E, d]``."""
    rounded = precision.experts
    w_in_EFd, w_gate_EFd, w_out_EdF = (to_bf16(w.to(precision.dtype), rounded) for w in weights[1:])
    x_Td = to_bf16(x_Td.to(precision.dtype), rounded)
    outputs = []
    for w_in_Fd, w_gate_Fd, w_out_dF in zip(w_in_EFd, w_gate_EFd, w_out_EdF, strict=True):
        first_TF, second_TF = (to_bf16(x_Td @ w_Fd.T, rounded) for w_Fd in (w_in_Fd, w_gate_Fd))
        hidden_TF = to_bf16(to_bf16(gelu(first_TF), rounded) * second_TF, rounded)
        outputs.append(to_bf16(hidden_TF @ w_out_dF.T, rounded))
    return torch.stack(outputs, dim=1)


def combine(outputs_TEd: Tensor, decisions: Decisions, precision: Precision) -> Tensor:
    """Return the layer's output, the sum of the chosen experts' outputs weighted by the gates, ``[T, d]``."""
    token_T = torch.arange(len(outputs_TEd))
    y_Td = torch.zeros_like(outputs_TEd[:, 0])
    for expert_T, gate_T in zip(decisions.expert_NT, decisions.gate_NT, strict=True):
        weight_T1 = to_bf16(gate_T.to(y_Td.dtype), precision.experts).unsqueeze(-1)
        y_Td = to_bf16(y_Td + weight_T1 * outputs_TEd[token_T, expert_T], precision.experts)
    return y_Td
