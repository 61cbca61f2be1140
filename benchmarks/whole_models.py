"""The models whose whole training step is compared, at equal sizes, and the matrix products of such a step alone.

Shape suffixes of the products: M = rows, K = inputs, N = outputs of each row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.config import StMoeConfig
from model.initialization import initialize_weights
from model.st_moe import StMoeForConditionalGeneration

CAPACITY = 1.25  # slots per token and expert, x tokens / experts
GELU_WIDTH, RELU_WIDTH = 682, 1024  # equal parameters: three matrices, two matrices


@dataclass(frozen=True)
class Shape:
    """Sizes that all models of a comparison share: ``layers`` in encoder and in decoder, every second one sparse."""

    d_model: int = 256
    heads: int = 4
    layers: int = 4
    experts: int = 8
    vocabulary: int = 32_128
    batch: int = 8
    inputs: int = 256
    targets: int = 58
    gelu_width: int = GELU_WIDTH
    relu_width: int = RELU_WIDTH

    @property
    def d_kv(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.heads


TOY = Shape(32, 2, 2, 4, 256, 2, 16, 8, 44, 66)


def our_options(shape: Shape, feed_forward: str, top_n: int | None) -> dict[str, Any]:
    """Return the ``model`` section of our model: dense, or sparse with ``top_n`` experts of each token."""
    return {
        "vocab_size": shape.vocabulary,
        "d_model": shape.d_model,
        "d_ff": shape.gelu_width if feed_forward == "geglu" else shape.relu_width,
        "d_kv": shape.d_kv,
        "num_heads": shape.heads,
        "num_layers": shape.layers,
        "feed_forward": feed_forward,
        "num_experts": 0 if top_n is None else shape.experts,
        "sparse_step": 2,
        "extra_feed_forward": "none",
        "top_n": top_n or 2,
        "train_capacity_factor": CAPACITY,
        "dropout_rate": 0.0,
    }


def make_ours(shape: Shape, feed_forward: str, top_n: int | None) -> nn.Module:
    """Make our model without expert parallelism."""
    config = StMoeConfig(**our_options(shape, feed_forward, top_n))
    model = StMoeForConditionalGeneration(config)
    initialize_weights(model, config, seed=0)
    return model


def make_hf_t5(shape: Shape) -> nn.Module:
    """Make Hugging Face's T5 v1.1: gated GELU, output head of its own."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(d_ff=shape.gelu_width, feed_forward_proj="gated-gelu", **_common(shape))
    model = T5ForConditionalGeneration(config)
    # The config ties head and embedding whatever it is told; v1.1 does not.
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def make_hf_switch(shape: Shape) -> nn.Module:
    """Make Hugging Face's Switch: top-1, ReLU, no token dropped, with its router losses."""
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    config = SwitchTransformersConfig(
        d_ff=shape.relu_width,
        num_experts=shape.experts,
        expert_capacity=shape.inputs,  # of a sequence; with less it would drop far more tokens, and compute less
        num_sparse_encoder_layers=shape.layers // 2,
        num_sparse_decoder_layers=shape.layers // 2,
        router_jitter_noise=0.0,
        output_router_logits=True,
        **_common(shape),
    )
    model = SwitchTransformersForConditionalGeneration(config)
    model.set_input_embeddings(model.shared)  # untying the head unties the embeddings of the stacks as well
    for router in routers_of_switch(model):
        # As in our models. Its own routers begin with logits so large that a third of the experts get no token.
        nn.init.normal_(router.classifier.weight, std=(0.1 / shape.d_model) ** 0.5)
    return model


def routers_of_switch(model: nn.Module) -> list[Any]:
    """Return the routers of Hugging Face's Switch in ``model``; none in others."""
    return [module for module in model.modules() if type(module).__name__ == "SwitchTransformersTop1Router"]


class ServedTokens:
    """Counts the share of tokens that get an expert, from the routers of one forward pass; None in a dense model."""

    def __init__(self, model: nn.Module):
        self.model, self.served = model, torch.zeros((), dtype=torch.int64)
        self.tokens = 0
        self.hooks = [router.register_forward_hook(self._note) for router in routers_of_switch(model)]

    def _note(self, _: nn.Module, __: Any, output: tuple[Tensor, ...]) -> None:
        self.served = self.served + output[0].sum().cpu()
        self.tokens += output[0].shape[:-1].numel()

    def share(self, output: Any) -> float | None:
        """Return the share, and stop counting. ``output``: of the forward pass, which tells it for our models."""
        for hook in self.hooks:
            hook.remove()
        if self.tokens:
            return float(self.served) / self.tokens
        sparse = getattr(getattr(self.model, "config", None), "num_experts", 0) and hasattr(output, "dropped_fraction")
        return 1 - float(output.dropped_fraction) if sparse else None


def _common(shape: Shape) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocabulary,
        "d_model": shape.d_model,
        "d_kv": shape.d_kv,
        "num_heads": shape.heads,
        "num_layers": shape.layers,
        "num_decoder_layers": shape.layers,
        "dropout_rate": 0.0,
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
        "use_cache": False,
    }


@dataclass(frozen=True)
class Contender:
    """A model of the comparison.

    Args:
        make: builds it.
        limit: name of its products in ``LIMITS``.
        block: class of its blocks, which are compiled one by one.
    """

    make: Callable[[Shape], nn.Module]
    limit: str
    block: str


CONTENDERS = {
    "ours dense GEGLU": Contender(lambda s: make_ours(s, "geglu", None), "dense GEGLU", "Block"),
    "HF T5 v1.1": Contender(make_hf_t5, "dense GEGLU", "T5Block"),
    "ours sparse ReLU top-1": Contender(lambda s: make_ours(s, "relu", 1), "sparse ReLU top-1", "Block"),
    "HF Switch top-1": Contender(make_hf_switch, "sparse ReLU top-1", "SwitchTransformersBlock"),
    "ours sparse GEGLU top-2": Contender(lambda s: make_ours(s, "geglu", 2), "sparse GEGLU top-2", "Block"),
}
PEERS = {"ours dense GEGLU": "HF T5 v1.1", "ours sparse ReLU top-1": "HF Switch top-1",
         "ours sparse GEGLU top-2": "HF Switch top-1"}  # fmt: skip
# Of each limit: whether feed-forwards are gated, and rows of the experts per token, None in a dense model.
LIMITS: dict[str, tuple[bool, float | None]] = {
    "dense GEGLU": (True, None),
    "sparse ReLU top-1": (False, 1.0),
    "sparse GEGLU top-2": (True, CAPACITY),
}


def products(shape: Shape, limit: str) -> list[tuple[int, int, int, int]]:
    """Return the matrix products of a forward pass, ``(batch, M, K, N)``: projections, attention, experts, head."""
    gated, rows_per_token = LIMITS[limit]
    d, width = shape.d_model, shape.gelu_width if gated else shape.relu_width
    inputs, targets = shape.batch * shape.inputs, shape.batch * shape.targets
    heads = shape.batch * shape.heads

    def attention(queries: int, keys: int) -> list[tuple[int, int, int, int]]:
        rows = [queries, keys, keys, queries]  # of q, k, v, o
        projections = [(1, shape.batch * count, d, d) for count in rows]
        return [*projections, (heads, queries, shape.d_kv, keys), (heads, queries, keys, shape.d_kv)]

    def feed_forward(tokens: int, *, sparse: bool) -> list[tuple[int, int, int, int]]:
        count, rows = (1, tokens) if not sparse else (shape.experts, int(tokens * (rows_per_token or 0)))
        each = rows // count
        into: list[tuple[int, int, int, int]] = [(1, each, d, width)] * (2 if gated else 1)
        return [*into, (1, each, width, d)] * count

    found: list[tuple[int, int, int, int]] = []
    for layer in range(shape.layers):
        sparse = rows_per_token is not None and layer % 2 == 1
        found += attention(shape.inputs, shape.inputs) + feed_forward(inputs, sparse=sparse)
        found += attention(shape.targets, shape.targets) + attention(shape.targets, shape.inputs)
        found += feed_forward(targets, sparse=sparse)
    return [*found, (1, targets, d, shape.vocabulary)]


class Products:
    """The products alone, on ready operands: forward, and of each the two of its backward pass."""

    def __init__(self, shape: Shape, limit: str, dtype: torch.dtype, device: str):
        made: dict[tuple[int, int, int, int], tuple[Tensor, Tensor, Tensor]] = {}
        self.operands = []
        for batch, m, k, n in products(shape, limit):
            if (batch, m, k, n) not in made:
                sizes = ((batch, m, k), (batch, k, n), (batch, m, n))
                made[batch, m, k, n] = tuple(torch.randn(size, device=device).to(dtype) for size in sizes)  # type: ignore[assignment]
            left, right, grad = made[batch, m, k, n]
            self.operands.append((left, right, grad) if batch > 1 else (left[0], right[0], grad[0]))

    def forward(self) -> None:
        """Run the products of a forward pass."""
        for left, right, _ in self.operands:
            torch.matmul(left, right)

    def backward(self) -> None:
        """Run the products of a backward pass."""
        for left, right, grad in self.operands:
            torch.matmul(grad, right.mT)
            torch.matmul(left.mT, grad)
