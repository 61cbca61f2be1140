"""A transformer block, and the stack of blocks of the encoder or the decoder.

Shape suffixes: B = sequences, L = positions, K = key positions (the encoder's output, or cached and new positions),
d = d_model.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from model.config import StMoeConfig
from model.layers.attention import Attention, RelativePositionBias, aligned, attention_bias
from model.layers.feed_forward import FeedForward
from model.layers.norm import RMSNorm
from model.layers.precision import matmul_dtype, to_matmul_dtype
from model.losses import RouterLosses
from model.moe.layer import SparseFeedForward


class SparseFactory(Protocol):
    """Builds the sparse layers of a model."""

    def __call__(self, config: StMoeConfig, *, decoder: bool) -> SparseFeedForward:
        """Build a sparse layer of the encoder or of the decoder."""


@dataclass
class StackOutput(ModelOutput):
    """Output of a stack: normalized hidden states ``[B, L, d]``, cache, and the losses of each sparse layer.

    ``hidden_states``, on request: the embeddings, the output of each block but the last, and ``last_hidden_state``.
    """

    last_hidden_state: Tensor | None = None
    past_key_values: EncoderDecoderCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    router_losses: tuple[RouterLosses, ...] | None = None


class Block(GradientCheckpointingLayer):
    """Attention, (decoder) cross-attention and feed-forward, each pre-norm → sub-layer → dropout → residual.

    In a sparse block the extra dense feed-forward is a further sub-layer, after or before the sparse one (Zoph et al.
    2022, appendix C).
    """

    def __init__(self, config: StMoeConfig, index: int, *, decoder: bool, make_sparse: SparseFactory):
        super().__init__()
        self.self_attention_norm = _norm(config)
        self.self_attention = Attention(config, index)
        self.cross_attention_norm = _norm(config) if decoder else None
        self.cross_attention = Attention(config, index) if decoder else None
        sparse = config.is_sparse_layer(index)
        self.extra_placement = config.extra_feed_forward if sparse else "none"
        self.feed_forward_norm = _norm(config)
        self.feed_forward = make_sparse(config, decoder=decoder) if sparse else FeedForward(config)
        self.extra_norm = _norm(config) if self.extra_placement != "none" else None
        self.extra_feed_forward = FeedForward(config) if self.extra_placement != "none" else None
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(
        self,
        x_BLd: Tensor,
        bias: Tensor | None,
        mask_BL: Tensor,
        divisor: Tensor | None = None,
        weight_B: Tensor | None = None,
        memory_BKd: Tensor | None = None,
        memory_bias: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        low_memory_BKd: Tensor | None = None,
    ) -> tuple[Tensor, RouterLosses | None]:
        """Run the sub-layers: ``[B, L, d]`` → ``[B, L, d]``.

        Args:
            x_BLd: residual stream.
            bias: additive bias of self-attention, see ``attention_bias``.
            mask_BL: bool, True for real tokens, for the router.
            divisor: divisor of the router z-loss, see ``LossDivisors``; None: the real tokens of this call.
            weight_B: weights of the sequences in the router losses, see ``SparseFeedForward.forward``.
            memory_BKd: the encoder's output (decoder).
            memory_bias: additive bias of cross-attention.
            past_key_values: cache of the decoder, updated in place.
            low_memory_BKd: ``memory_BKd`` in the dtype of matrix products, cast once for all blocks.

        Returns:
            The residual stream, and the router's losses (None from a dense block).
        """
        x_BLd = x_BLd + self.dropout(self.self_attention(self.self_attention_norm(x_BLd), bias, cache=past_key_values))
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            normed = self.cross_attention_norm(x_BLd)
            y_BLd = self.cross_attention(normed, memory_bias, memory_BKd, past_key_values, low_memory_BKd)
            x_BLd = x_BLd + self.dropout(y_BLd)
        if self.extra_placement == "before":
            x_BLd = self._extra(x_BLd)
        losses = None
        normed = self.feed_forward_norm(x_BLd)
        if isinstance(self.feed_forward, SparseFeedForward):
            y_BLd, losses = self.feed_forward(normed, mask_BL, divisor, weight_B)
        else:
            y_BLd = self.feed_forward(normed)
        x_BLd = x_BLd + self.dropout(y_BLd)
        if self.extra_placement == "after":
            x_BLd = self._extra(x_BLd)
        return x_BLd, losses

    def _extra(self, x_BLd: Tensor) -> Tensor:
        assert self.extra_norm is not None
        assert self.extra_feed_forward is not None
        return x_BLd + self.dropout(self.extra_feed_forward(self.extra_norm(x_BLd)))


class Stack(nn.Module):
    """Blocks of the encoder or the decoder, with position bias, final norm and dropout."""

    main_input_name = "input_ids"  # read by generate(), see st_moe.EmbeddedEncoder

    def __init__(self, config: StMoeConfig, *, decoder: bool, make_sparse: SparseFactory):
        super().__init__()
        self.decoder = decoder
        layers = config.num_decoder_layers if decoder else config.num_layers
        assert layers is not None
        self.position_bias = RelativePositionBias(config, bidirectional=not decoder)
        self.blocks = nn.ModuleList(
            Block(config, index, decoder=decoder, make_sparse=make_sparse) for index in range(layers)
        )
        self.final_norm = _norm(config)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(
        self,
        embeds_BLd: Tensor,
        mask_BL: Tensor,
        key_mask_BK: Tensor | None = None,
        memory_BKd: Tensor | None = None,
        memory_mask_BK: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        divisor: Tensor | None = None,
        weight_B: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> StackOutput:
        """Run the blocks.

        Args:
            embeds_BLd: embedded tokens; their positions follow the cached ones.
            mask_BL: bool, True for real tokens, for the routers.
            key_mask_BK: True for positions, cached ones included, that self-attention may attend to; None: all.
            memory_BKd: the encoder's output (decoder).
            memory_mask_BK: True for real positions of the encoder's output; None: all.
            past_key_values: cache of the decoder, updated in place.
            divisor: divisor of the router z-loss, see ``LossDivisors``; None: the real tokens of this call.
            weight_B: weights of the sequences in the router losses, see ``SparseFeedForward.forward``.
            output_hidden_states: whether to return ``hidden_states``.
        """
        length = embeds_BLd.shape[1]
        past = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
        keys = past + length
        allowed = None if key_mask_BK is None else key_mask_BK[:, None, None, :].bool()
        if self.decoder and length > 1:
            position = torch.arange(keys, device=embeds_BLd.device)
            causal = position <= position[past:].unsqueeze(-1)
            allowed = causal if allowed is None else allowed & causal
        dtype = matmul_dtype(embeds_BLd)
        bias = aligned(attention_bias(self.position_bias(length, keys), allowed, dtype))
        memory_allowed = None if memory_mask_BK is None else memory_mask_BK[:, None, None, :].bool()
        memory_bias = aligned(attention_bias(None, memory_allowed, dtype))

        low_memory_BKd = None if memory_BKd is None else to_matmul_dtype(memory_BKd).detach()

        x_BLd = self.dropout(embeds_BLd)
        losses, hidden = [], []
        for block in self.blocks:
            if output_hidden_states:
                hidden.append(x_BLd)
            x_BLd, block_losses = block(
                x_BLd,
                bias,
                mask_BL,
                divisor,
                weight_B,
                memory_BKd,
                memory_bias,
                past_key_values=past_key_values,
                low_memory_BKd=low_memory_BKd,
            )
            if block_losses is not None:
                losses.append(block_losses)
        last_BLd = self.dropout(self.final_norm(x_BLd))
        return StackOutput(
            last_hidden_state=last_BLd,
            past_key_values=past_key_values,
            hidden_states=(*hidden, last_BLd) if output_hidden_states else None,
            router_losses=tuple(losses),
        )


def _norm(config: StMoeConfig) -> RMSNorm:
    return RMSNorm(config.d_model, config.rms_norm_epsilon, config.rms_norm_scale)
