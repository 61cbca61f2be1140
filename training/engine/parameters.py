"""What the optimizer and its metrics must know of the model's parameters: where experts are, and families."""

from collections.abc import Mapping

from torch import Tensor, nn

from model.attention import Attention, RelativePositionBias
from model.feed_forward import FeedForward
from model.moe.experts import Experts
from model.moe.router import Router
from model.norm import RMSNorm
from model.st_moe import StMoeForConditionalGeneration

FAMILIES: Mapping[type[nn.Module], str] = {
    nn.Embedding: "embedding",
    Attention: "attention",
    FeedForward: "feed_forward",
    Experts: "experts",
    Router: "router",
    RMSNorm: "norm",
    RelativePositionBias: "relative_bias",
}


def first_experts(model: nn.Module) -> dict[Tensor, int]:
    """Parameters whose leading axis runs over experts → the global number of the first that this rank holds."""
    first: dict[Tensor, int] = {}
    for module in model.modules():
        if isinstance(module, Experts):
            first |= dict.fromkeys((module.w1, module.w2, module.w3), module.first)
            if module.hidden_bias is not None:
                first[module.hidden_bias.weight] = 0  # all ranks hold all experts' vectors
    return first


def parameter_families(model: StMoeForConditionalGeneration) -> dict[str, str]:
    """Name of every parameter → its family, one of ``FAMILIES`` or ``head``."""
    families: dict[str, str] = {}
    head = model.get_output_embeddings()
    for module_name, module in model.named_modules():
        # The experts are of a subclass where they are spread over ranks.
        family = "head" if module is head else next(filter(None, map(FAMILIES.get, type(module).__mro__)), None)
        if family is not None:
            families |= {f"{module_name}.{name}": family for name, _ in module.named_parameters()}
    return families
