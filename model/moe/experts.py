"""The experts of a sparse layer: stacked feed-forwards, applied to rows that are sorted by expert.

Shape suffixes: E = experts on this rank, R = rows of all of them, r = rows of one, d = d_model, F = d_ff.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import StMoeConfig
from model.layers.dropout import factors, split
from model.layers.feed_forward import make_hidden_bias
from model.layers.geglu import gelu
from model.layers.ranges import EXPERTS, named_range
from model.moe.grouped_geglu import ReusedMemory, can_group, geglu_grouped, geglu_per_expert
from model.moe.relu_experts import relu_grouped, relu_per_expert

Weights = tuple[Tensor, Tensor, Tensor]


class Experts(nn.Module):
    """``num_local`` of the layer's experts, starting at the global expert ``first``.

    ``w1 [E, F, d]`` is W_in, ``w3 [E, F, d]`` is W_gate, ``w2 [E, d, F]`` is W_out. With ReLU, ``w1`` and ``w3``, each
    ``[E, F / 2, d]``, are the two halves of W_in. The names are those of DeepSpeed's ``AutoEPMoELayer``, from which
    ``parallel.layer`` derives. Of DeepSpeed, only the engine's checkpoint methods look them up, and these are not used;
    but this project's own checkpoints store the weights under these names.
    """

    def __init__(self, config: StMoeConfig, num_local: int, first: int = 0):
        super().__init__()
        self.num_local, self.first = num_local, first
        self.gated = config.feed_forward == "geglu"
        self.dropout_rate = config.expert_dropout_rate
        d, inner = config.d_model, config.d_ff if self.gated else config.d_ff // 2
        self.w1 = nn.Parameter(torch.empty(num_local, inner, d))
        self.w2 = nn.Parameter(torch.empty(num_local, d, config.d_ff))
        self.w3 = nn.Parameter(torch.empty(num_local, inner, d))
        # The vectors of all experts on every rank: num_experts x F numbers, replicated like a dense parameter.
        self.hidden_bias = make_hidden_bias(config, config.num_experts)
        # Whether grouped products keep weights that were cast until the backward pass: experts are most of a model's
        # weights, and to cast them again costs little beside their products.
        self.keep_casts = False
        self.gradient_memory = tuple(ReusedMemory() for _ in range(3))

    def forward(self, rows_Rd: Tensor, counts_E: Tensor | None = None) -> Tensor:
        """Run every expert on its rows: ``[R, d]`` → ``[R, d]``, same dtype.

        Products are computed in the dtype of the rows; the weights' gradients have the dtype of the weights.

        Args:
            rows_Rd: rows sorted by expert.
            counts_E: rows of each expert, integers; rows beyond their sum belong to no expert and come out as 0. None:
                R / E rows each.
        """
        return self.run(rows_Rd, counts_E, (self.w1, self.w2, self.w3))

    def run(self, rows_Rd: Tensor, counts_E: Tensor | None, weights: Weights, first: int = 0) -> Tensor:
        """Run the consecutive experts with ``weights``, starting at the local expert ``first``; see ``forward``."""
        with named_range(EXPERTS):
            return self._run(rows_Rd, counts_E, weights, first)

    def _run(self, rows_Rd: Tensor, counts_E: Tensor | None, weights: Weights, first: int) -> Tensor:
        rows, experts, plain = len(rows_Rd), len(weights[0]), self.hidden_bias is None
        dropping = self.training and self.dropout_rate > 0
        dropout_RF = factors(rows_Rd, weights[1].shape[2], self.dropout_rate) if dropping else None
        if plain and can_group(rows_Rd, weights[0]):
            by_groups = geglu_grouped if self.gated else relu_grouped
            return by_groups(rows_Rd, counts_E, *weights, keep=self.keep_casts, dropout_RF=dropout_RF)
        counts = [rows // experts] * experts if counts_E is None else counts_E.tolist()
        if plain:
            one_by_one = geglu_per_expert if self.gated else relu_per_expert
            return one_by_one(rows_Rd, counts, *weights, self.gradient_memory, dropout_RF)
        all_counts = [*counts, rows - sum(counts)]
        parts, dropped = rows_Rd.split(all_counts), split(dropout_RF, all_counts)
        of_each = zip(*(w.unbind() for w in weights), strict=True)  # unbind, unlike w[e], has one backward for all
        outputs = [
            self._one(part, w1, w2, w3, first + e, dropout_rF)
            for e, (part, dropout_rF, (w1, w2, w3)) in enumerate(zip(parts[:-1], dropped[:-1], of_each, strict=True))
        ]
        return torch.cat((*outputs, outputs[0].new_zeros(parts[-1].shape)))

    def _one(
        self, rows_rd: Tensor, w1_Fd: Tensor, w2_dF: Tensor, w3_Fd: Tensor, local: int, dropout_rF: Tensor | None
    ) -> Tensor:
        """Run one expert with a bias on the hidden activation."""
        first, second = functional.linear(rows_rd, w1_Fd), functional.linear(rows_rd, w3_Fd)
        hidden_rF = gelu(first) * second if self.gated else functional.relu(torch.cat((first, second), dim=-1))
        if self.hidden_bias is not None:
            hidden_rF = self.hidden_bias(hidden_rF, self.first + local)
        if dropout_rF is not None:
            hidden_rF = hidden_rF * dropout_rF
        return functional.linear(hidden_rF, w2_dF)
