"""Multi-head attention with T5's relative position bias.

Shape suffixes: B = sequences, Q = query positions, K = key positions, H = heads, D = d_kv, d = d_model.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import EncoderDecoderCache

from model.config import StMoeConfig
from model.layers.biased_attention import attend_with_bias, needs_bias_gradient
from model.layers.precision import to_matmul_dtype
from model.layers.products import cast_together, is_cast, project

#: Not cuDNN's: its backward pass on sm90 gives NaN in the gradient of the queries where there is a mask, the number of
#: keys is 64 modulo 128 and the logits' logsumexp is below -88.7 (torch 2.11 to 2.13, issue 196678). T5's logits are
#: not scaled, and reach that.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class RelativePositionBias(nn.Module):
    """Learned bias per head and bucket of relative distance; all layers of a stack share one (Raffel et al. 2020)."""

    def __init__(self, config: StMoeConfig, *, bidirectional: bool):
        super().__init__()
        self.buckets = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance
        self.bidirectional = bidirectional
        self.weight = nn.Parameter(torch.empty(self.buckets, config.num_heads))

    def forward(self, queries: int, keys: int) -> Tensor:
        """Return the bias ``[1, H, Q, K]`` of the last ``queries`` of ``keys`` positions, in the weight's dtype."""
        device = self.weight.device
        position_K = torch.arange(keys, device=device)
        distance_QK = position_K - position_K[keys - queries :].unsqueeze(-1)
        bias_QKH = functional.embedding(self._bucket(distance_QK), self.weight)
        return bias_QKH.permute(2, 0, 1).unsqueeze(0)

    def _bucket(self, distance: Tensor) -> Tensor:
        """Map distances (key position - query position) to buckets: exact when near, logarithmic when far.

        Distances from ``max_distance`` on share the last bucket.
        """
        buckets = self.buckets // 2 if self.bidirectional else self.buckets
        offset = (distance > 0) * buckets if self.bidirectional else torch.zeros_like(distance)
        distance = distance.abs() if self.bidirectional else (-distance).clamp(min=0)
        exact = buckets // 2
        ratio = (distance.clamp(min=1).float() / exact).log() / math.log(self.max_distance / exact)
        far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
        return offset + torch.where(distance < exact, distance, far)


ALIGNED_KEYS = 8  # elements of bf16 in the 16 bytes to which fused attention aligns the rows of a bias


def aligned(bias: Tensor | None) -> Tensor | None:
    """Return ``bias [..., K]`` with rows that lie aligned in memory: otherwise every layer would make such a copy."""
    if bias is None or bias.shape[-1] % ALIGNED_KEYS == 0:
        return bias
    keys = bias.shape[-1]
    return functional.pad(bias, (0, -keys % ALIGNED_KEYS))[..., :keys]


def attention_bias(position_bias: Tensor | None, allowed: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Combine position bias and mask into the additive bias that all layers of a stack share.

    Args:
        position_bias: ``[1, H, Q, K]``, or None (cross-attention).
        allowed: bool, broadcastable to ``[B, H, Q, K]``, True where a query may attend to a key; None: everywhere.
        dtype: dtype of queries and keys.

    Returns:
        Additive bias in ``dtype``, or None if there is neither position bias nor mask.
    """
    if position_bias is not None:
        position_bias = position_bias.to(dtype)
        return position_bias if allowed is None else position_bias.masked_fill(~allowed, torch.finfo(dtype).min)
    if allowed is None:
        return None
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)


class QueryProjection(nn.Linear):
    """Linear map whose initialization includes the factor 1/sqrt(d_kv), by which T5 does not divide the logits."""


class Attention(nn.Module):
    """Self-attention, or cross-attention when called with ``memory_BKd``; logits are not divided by sqrt(d_kv)."""

    def __init__(self, config: StMoeConfig, layer_index: int):
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.d_kv, self.layer_index = config.d_kv, layer_index
        self.q = QueryProjection(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        # Whether to keep the weights in the lower precision from the forward to the backward pass.
        self.keep_casts = True

    def forward(
        self,
        x_BQd: Tensor,
        bias: Tensor | None,
        memory_BKd: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        low_memory_BKd: Tensor | None = None,
    ) -> Tensor:
        """Attend: ``[B, Q, d]`` → ``[B, Q, d]``.

        Args:
            x_BQd: normalized activations.
            bias: additive, broadcastable to ``[B, H, Q, K]``, in the dtype of the projections.
            memory_BKd: the encoder's output, for cross-attention.
            cache: keys and values of earlier positions, updated in place.
            low_memory_BKd: ``memory_BKd`` in the dtype of matrix products, if the caller has it.
        """
        if cache is None and self.keep_casts and is_cast(self.q.weight):
            return self._forward_cast(x_BQd, bias, memory_BKd, low_memory_BKd)
        q_BHQD = self._heads(self.q(x_BQd))
        if memory_BKd is None:
            k_BHKD, v_BHKD = self._heads(self.k(x_BQd)), self._heads(self.v(x_BQd))
            if cache is not None:
                k_BHKD, v_BHKD = cache.self_attention_cache.update(k_BHKD, v_BHKD, self.layer_index)
        elif cache is not None and cache.is_updated.get(self.layer_index):
            layer = cache.cross_attention_cache.layers[self.layer_index]
            k_BHKD, v_BHKD = layer.keys, layer.values
        else:
            k_BHKD, v_BHKD = self._heads(self.k(memory_BKd)), self._heads(self.v(memory_BKd))
            if cache is not None:
                k_BHKD, v_BHKD = cache.cross_attention_cache.update(k_BHKD, v_BHKD, self.layer_index)
                cache.is_updated[self.layer_index] = True
        y_BHQD = _attend(q_BHQD, k_BHKD, v_BHKD, bias)
        return self.o(y_BHQD.transpose(1, 2).flatten(2))

    def _forward_cast(
        self, x_BQd: Tensor, bias: Tensor | None, memory_BKd: Tensor | None, low_memory_BKd: Tensor | None
    ) -> Tensor:
        """Compute ``forward`` under autocast: weights are cast together, projections of one input are one product."""
        low_BQd = to_matmul_dtype(x_BQd)
        weights = (self.q.weight, self.k.weight, self.v.weight)
        into_Nd, out_of = cast_together((weights, (self.o.weight,)), low_BQd.dtype)
        if memory_BKd is None:
            q, k, v = project(x_BQd, low_BQd, into_Nd, (self.q, self.k, self.v))
        else:
            inner = len(self.q.weight)
            low_BKd = to_matmul_dtype(memory_BKd) if low_memory_BKd is None else low_memory_BKd
            (q,) = project(x_BQd, low_BQd, into_Nd[:inner], (self.q,))
            k, v = project(memory_BKd, low_BKd, into_Nd[inner:], (self.k, self.v))
        y_BHQD = _attend(self._heads(q), self._heads(k), self._heads(v), bias)
        y_BQN = y_BHQD.transpose(1, 2).flatten(2)
        return project(y_BQN, y_BQN, out_of, (self.o,))[0]

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.d_kv)).transpose(1, 2)


@torch.compiler.assume_constant_result  # dynamo cannot trace it, and would cut every block at every attention
def _cudnn_is_allowed() -> bool:
    return bool(torch.backends.cuda.cudnn_sdp_enabled())


def _attend(q_BHQD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor, bias: Tensor | None) -> Tensor:
    if bias is not None and needs_bias_gradient(q_BHQD, bias):
        return attend_with_bias(q_BHQD, k_BHKD, v_BHKD, bias)
    if not _cudnn_is_allowed():  # as in a training run, which switches it off once
        return functional.scaled_dot_product_attention(q_BHQD, k_BHKD, v_BHKD, attn_mask=bias, scale=1.0)
    with sdpa_kernel(KERNELS):
        return functional.scaled_dot_product_attention(q_BHQD, k_BHKD, v_BHKD, attn_mask=bias, scale=1.0)
