"""The parameters of a configuration: names, shapes, families, and their counts, without building a model.

Imports no torch: a model of 10^12 parameters is counted in a millisecond. ``tests/model/test_model_size.py`` compares
every name and shape, in order, with the modules'.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from model.architecture import Architecture


@dataclass(frozen=True)
class ParameterShape:
    """One parameter of the model."""

    name: str  # as ``named_parameters`` gives it
    shape: tuple[int, ...]  # all experts of a layer included
    family: str  # of ``training.engine.parameters.FAMILIES``, or ``head``
    by_expert: bool = False  # whether the leading axis runs over experts, which can be dealt to ranks

    @property
    def numel(self) -> int:
        """Elements, of all experts."""
        return prod(self.shape)


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a model by what they are for."""

    total: int
    active: int  # for one token, see ``count_parameters``
    experts: int  # hidden biases of experts included
    router: int
    embedding: int  # of the input
    head: int
    dense: int  # all others: attention, position biases, feed-forwards that every token passes, norms


def parameter_shapes(config: Architecture) -> list[ParameterShape]:
    """Return every parameter of ``StMoeForConditionalGeneration``, in the order of ``named_parameters``."""
    assert config.num_decoder_layers is not None
    embedding = (config.vocab_size, config.d_model)
    return [
        ParameterShape("shared.weight", embedding, "embedding"),
        *_stack(config, "encoder", config.num_layers, decoder=False),
        *_stack(config, "decoder", config.num_decoder_layers, decoder=True),
        ParameterShape("lm_head.weight", embedding, "head"),
    ]


def _stack(config: Architecture, name: str, layers: int, *, decoder: bool) -> Iterator[ParameterShape]:
    buckets = (config.relative_attention_num_buckets, config.num_heads)
    yield ParameterShape(f"{name}.position_bias.weight", buckets, "relative_bias")
    for index in range(layers):
        yield from _block(config, f"{name}.blocks.{index}", decoder=decoder, sparse=config.is_sparse_layer(index))
    yield from _norm(config, f"{name}.final_norm")


def _block(config: Architecture, name: str, *, decoder: bool, sparse: bool) -> Iterator[ParameterShape]:
    for kind in ("self_attention", "cross_attention") if decoder else ("self_attention",):
        yield from _norm(config, f"{name}.{kind}_norm")
        inner = config.num_heads * config.d_kv
        for projection in "qkvo":
            shape = (config.d_model, inner) if projection == "o" else (inner, config.d_model)
            yield ParameterShape(f"{name}.{kind}.{projection}.weight", shape, "attention")
    yield from _norm(config, f"{name}.feed_forward_norm")
    if not sparse:
        yield from _feed_forward(config, f"{name}.feed_forward")
        return
    yield ParameterShape(f"{name}.feed_forward.router.weight", (config.num_experts, config.d_model), "router")
    yield from _experts(config, f"{name}.feed_forward.experts")
    if config.extra_feed_forward != "none":
        yield from _norm(config, f"{name}.extra_norm")
        yield from _feed_forward(config, f"{name}.extra_feed_forward")


def _norm(config: Architecture, name: str) -> Iterator[ParameterShape]:
    if config.rms_norm_scale:
        yield ParameterShape(f"{name}.scale", (config.d_model,), "norm")


def _feed_forward(config: Architecture, name: str) -> Iterator[ParameterShape]:
    inwards, outwards = (config.d_ff, config.d_model), (config.d_model, config.d_ff)
    yield ParameterShape(f"{name}.w_in.weight", inwards, "feed_forward")
    if config.feed_forward == "geglu":
        yield ParameterShape(f"{name}.w_gate.weight", inwards, "feed_forward")
    if config.feed_forward_bias != "none":
        yield ParameterShape(f"{name}.hidden_bias.weight", (config.d_ff,), "feed_forward")
    yield ParameterShape(f"{name}.w_out.weight", outwards, "feed_forward")


def _experts(config: Architecture, name: str) -> Iterator[ParameterShape]:
    experts, d = config.num_experts, config.d_model
    inner = config.d_ff if config.feed_forward == "geglu" else config.d_ff // 2  # halves of a ReLU expert's W_in
    for weight, shape in (("w1", (inner, d)), ("w2", (d, config.d_ff)), ("w3", (inner, d))):
        yield ParameterShape(f"{name}.{weight}", (experts, *shape), "experts", by_expert=True)
    if config.feed_forward_bias != "none":  # every rank holds the vectors of all experts
        yield ParameterShape(f"{name}.hidden_bias.weight", (experts, config.d_ff), "experts")


def parameter_counts(config: Architecture) -> ParameterCounts:
    """Return the parameters by what they are for."""
    families: dict[str, int] = {}
    for parameter in parameter_shapes(config):
        families[parameter.family] = families.get(parameter.family, 0) + parameter.numel
    total = sum(families.values())
    experts = families.pop("experts", 0)
    router, embedding, head = (families.pop(name, 0) for name in ("router", "embedding", "head"))
    unused = _unused(config, experts)
    return ParameterCounts(total, total - unused, experts, router, embedding, head, dense=sum(families.values()))


def _unused(config: Architecture, experts: int) -> int:
    """Return the parameters of the experts that a token does not use, of ``experts`` in all sparse layers."""
    layers = config.sparse_layer_names()
    unused = 0
    for layer in layers:
        by_expert = config.stack_gating(decoder=layer.startswith("decoder")) == "expert_choice"
        used = min(config.train_capacity_factor if by_expert else config.top_n, config.num_experts)
        unused += int(experts // len(layers) * (config.num_experts - used) / config.num_experts)
    return unused


def count_parameters(config: Architecture) -> tuple[int, int]:
    """Return the total number of parameters, and the number active for one token.

    Active are all parameters but those of experts that the token is not routed to. The token passes through encoder and
    decoder and, in each sparse layer, through ``top_n`` experts; with expert choice, through as many experts as select
    it on average, which is the training capacity factor.
    """
    counts = parameter_counts(config)
    return counts.total, counts.active
