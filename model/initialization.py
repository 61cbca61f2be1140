"""Initial weights, a function of (seed, parameter name, global expert number) alone: equal in every parallel layout.

Matrices: normal with sigma = sqrt(initializer_scale / fan_in), truncated at two sigma (Fedus et al. 2021). Query
projection: the same sigma times 1/sqrt(d_kv), which T5 leaves out of the attention logits. Token embedding: N(0, 1).
Router: N(0, 0.02 x router_initializer_factor). Norm scales: 1.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from model.config import StMoeConfig
from model.layers.attention import QueryProjection, RelativePositionBias
from model.layers.feed_forward import HiddenBias
from model.layers.norm import RMSNorm
from model.moe.experts import Experts
from model.moe.router import Router
from model.seeding import seed_of

Fill = Callable[[Tensor, Generator | None], Tensor]
ROUTER_STD = 0.02


def _truncated(scale: float, fan_in: int, factor: float = 1.0) -> Fill:
    std = (scale / fan_in) ** 0.5 * factor
    return lambda t, g: nn.init.trunc_normal_(t, std=std, a=-2 * std, b=2 * std, generator=g)


def _normal(std: float) -> Fill:
    return lambda t, g: t.normal_(0.0, std, generator=g)


def _constant(value: float) -> Fill:
    return lambda t, g: t.fill_(value)


def _fill_for(module: nn.Module, name: str, config: StMoeConfig) -> Fill:
    """Return the initializer of the parameter ``name``, which ``module`` itself owns."""
    if isinstance(module, RMSNorm):
        return _constant(1.0)
    if isinstance(module, HiddenBias):
        return _constant(1.0 if module.kind == "multiplicative" else 0.0)
    if isinstance(module, Router):
        return _normal(ROUTER_STD * config.router_initializer_factor)
    if isinstance(module, nn.Embedding):
        return _normal(1.0)
    if isinstance(module, RelativePositionBias):
        return _truncated(config.initializer_scale, module.buckets)
    if isinstance(module, Experts):
        return _truncated(config.initializer_scale, config.d_ff if name == "w2" else config.d_model)
    if isinstance(module, QueryProjection):
        return _truncated(config.initializer_scale, module.in_features, config.d_kv**-0.5)
    if isinstance(module, nn.Linear):
        return _truncated(config.initializer_scale, module.in_features)
    raise TypeError(f"no initializer for parameter {name} of {type(module).__name__}")


@torch.no_grad()
def initialize_module(module: nn.Module, config: StMoeConfig) -> None:
    """Fill the parameters that ``module`` itself owns from torch's global generator (called by Hugging Face).

    Raises:
        TypeError: a parameter has no initializer.
    """
    for name, parameter in module.named_parameters(recurse=False):
        if not getattr(parameter, "_is_hf_initialized", False):
            _fill_for(module, name, config)(parameter, None)


@torch.no_grad()
def initialize_weights(model: nn.Module, config: StMoeConfig, seed: int) -> None:
    """Fill every parameter of ``model`` in place, on any device, in any dtype and for any share of the experts.

    Numbers are drawn on the CPU in float32, so that they do not depend on the device, for one parameter at a time and
    of a stacked expert weight for one expert at a time.

    Args:
        model: the model, or a part of it; parameter names are relative to it.
        config: ``initializer_scale``, ``router_initializer_factor`` and the widths.
        seed: ``training.seed``.

    Raises:
        TypeError: a parameter has no initializer.
    """
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            fill = _fill_for(module, name, config)
            full_name = f"{module_name}.{name}"
            if isinstance(module, Experts):
                for local, expert in enumerate(parameter):
                    _fill_from(expert, fill, seed_of(seed, full_name, module.first + local))
            else:
                _fill_from(parameter, fill, seed_of(seed, full_name))


def _fill_from(target: Tensor, fill: Fill, seed: int) -> None:
    generator = Generator().manual_seed(seed)
    target.copy_(fill(torch.empty(target.shape, dtype=torch.float32), generator))
