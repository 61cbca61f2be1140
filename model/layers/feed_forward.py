"""The dense feed-forward of a block, with the activation and hidden bias that the experts share.

Shape suffixes: d = d_model, F = d_ff.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import StMoeConfig
from model.layers.geglu import gelu
from model.layers.precision import to_matmul_dtype
from model.layers.products import geglu, is_cast


class HiddenBias(nn.Module):
    """Learned vector on the hidden activation of one or several feed-forwards (Zoph et al. 2022, appendix C).

    Args:
        shape: ``[F]``, or ``[num_experts, F]`` for all experts of a sparse layer.
        kind: ``multiplicative`` (initialized to 1) or ``additive`` (initialized to 0).
    """

    def __init__(self, shape: tuple[int, ...], kind: Literal["multiplicative", "additive"]):
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.empty(shape))

    def forward(self, hidden: Tensor, index: int | None = None) -> Tensor:
        """Apply the bias to ``hidden [..., F]``; ``index`` selects the row of an expert, by its global number."""
        vector = self.weight if index is None else self.weight[index]
        return hidden * vector if self.kind == "multiplicative" else hidden + vector


def make_hidden_bias(config: StMoeConfig, *leading: int) -> HiddenBias | None:
    """Return the bias that ``config.feed_forward_bias`` names, of shape ``[*leading, F]``, or None."""
    if config.feed_forward_bias == "none":
        return None
    return HiddenBias((*leading, config.d_ff), config.feed_forward_bias)


class FeedForward(nn.Module):
    """GEGLU ``gelu(x W_in) * (x W_gate) W_out``, or ``relu(x W_in) W_out``; no biases (Shazeer 2020)."""

    def __init__(self, config: StMoeConfig):
        super().__init__()
        self.w_in = nn.Linear(config.d_model, config.d_ff, bias=False)
        gated = config.feed_forward == "geglu"
        self.w_gate = nn.Linear(config.d_model, config.d_ff, bias=False) if gated else None
        self.hidden_bias = make_hidden_bias(config)
        self.w_out = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.keep_casts = True  # see Attention

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``x [..., d]`` → ``[..., d]``; the dtype is that of the linear layers' outputs."""
        if self.w_gate is not None and self.hidden_bias is None and self.keep_casts and is_cast(self.w_in.weight):
            x_Td = x.reshape(-1, x.shape[-1])
            matrices = (self.w_in.weight, self.w_gate.weight, self.w_out.weight)
            return geglu(x_Td, to_matmul_dtype(x_Td), matrices, keep=True).view(x.shape)
        hidden = self.w_in(x)
        hidden = functional.relu(hidden) if self.w_gate is None else gelu(hidden) * self.w_gate(x)
        if self.hidden_bias is not None:
            hidden = self.hidden_bias(hidden)
        return self.w_out(hidden)
