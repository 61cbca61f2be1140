"""Specs, ZeRO partitions and families of the model's parameters, for optimizer, checkpoints and metrics."""

import math
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from model.layers.attention import Attention, RelativePositionBias
from model.layers.feed_forward import FeedForward
from model.layers.norm import RMSNorm
from model.moe.experts import Experts
from model.moe.layer import SparseFeedForward
from model.moe.router import Router
from model.st_moe import StMoeForConditionalGeneration
from optim.parameter import ExpertAxis, ParameterSpec, parameter_specs
from optim.partition import Partition
from optim.zero_partitions import frozen_parameters, read_partitions
from training.config.training import TRAINABLE

FAMILIES: Mapping[type[nn.Module], str] = {
    nn.Embedding: "embedding",
    Attention: "attention",
    FeedForward: "feed_forward",
    Experts: "experts",
    Router: "router",
    RMSNorm: "norm",
    RelativePositionBias: "relative_bias",
}

_partitions: "WeakKeyDictionary[Any, list[Partition]]" = WeakKeyDictionary()


def model_parameter_specs(model: nn.Module) -> dict[Tensor, ParameterSpec]:
    """Return the spec of every parameter of the model, with its expert axis; the only source of both."""
    axes: dict[Tensor, ExpertAxis] = {}
    for module in model.modules():
        if isinstance(module, SparseFeedForward):
            experts, total = module.experts, module.config.num_experts
            held = range(experts.first, experts.first + experts.num_local)
            axes |= dict.fromkeys((experts.w1, experts.w2, experts.w3), ExpertAxis(total, held, split=True))
            if experts.hidden_bias is not None:  # every rank holds the vectors of all experts
                axes[experts.hidden_bias.weight] = ExpertAxis(total, range(total), split=False)
    return parameter_specs(model.named_parameters(), axes)


def engine_partitions(engine: Any) -> list[Partition]:
    """Return the partitions of an engine's optimizer; collective on the first call, then remembered.

    Raises:
        RuntimeError, TypeError: see ``read_partitions``.
    """
    if engine not in _partitions:
        _partitions[engine] = read_partitions(engine.optimizer, model_parameter_specs(engine.module))
    return _partitions[engine]


def frozen_partitions(engine: Any) -> list[Partition]:
    """Return what this rank holds of the parameters that no optimizer trains."""
    return list(frozen_parameters(model_parameter_specs(engine.module)))


def freeze(model: StMoeForConditionalGeneration, trainable: str) -> None:
    """Let only the parameters that ``training.trainable`` names require a gradient."""
    families = parameter_families(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(families[name] in TRAINABLE[trainable])


def trained_numel(model: nn.Module) -> int:
    """Return the elements of all parameters that are trained, experts of all ranks included."""
    specs = model_parameter_specs(model)
    return sum(math.prod(spec.shape) for parameter, spec in specs.items() if parameter.requires_grad)


def parameter_families(model: StMoeForConditionalGeneration) -> dict[str, str]:
    """Return the family of every parameter by name: one of ``FAMILIES``, or ``head``."""
    families: dict[str, str] = {}
    head = model.get_output_embeddings()
    for module_name, module in model.named_modules():
        # Expert-parallel experts are of a subclass.
        family = "head" if module is head else next(filter(None, map(FAMILIES.get, type(module).__mro__)), None)
        if family is not None:
            families |= {f"{module_name}.{name}": family for name, _ in module.named_parameters()}
    return families
