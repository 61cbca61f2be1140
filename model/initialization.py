"""Initial weights, a function of (seed, parameter name, global expert number) alone: equal in every parallel layout.

Matrices: normal with sigma = sqrt(initializer_scale / fan_in), truncated at two sigma (Fedus et al. 2021). Query
projection: the same sigma times 1/sqrt(d_kv), which T5 leaves out of the attention logits. Token embedding: N(0, 1).
Router: N(0, 0.02 x router_initializer_factor). Norm scales: 1.
"""

from collections.abc import Iterator

import torch
from torch import nn

from model.config import StMoeConfig
from model.draws.distributions import Constant, Distribution, Draw, Normal, fill
from model.draws.threads import draw_all
from model.layers.attention import QueryProjection, RelativePositionBias
from model.layers.feed_forward import HiddenBias
from model.layers.norm import RMSNorm
from model.moe.experts import Experts
from model.moe.router import Router
from model.seeding import seed_of

ROUTER_STD = 0.02


def _truncated(scale: float, fan_in: int, factor: float = 1.0) -> Normal:
    return Normal((scale / fan_in) ** 0.5 * factor, truncated=True)


def _distribution_of(module: nn.Module, name: str, config: StMoeConfig) -> Distribution:
    """Return the distribution of the parameter ``name``, which ``module`` itself owns."""
    if isinstance(module, RMSNorm):
        return Constant(1.0)
    if isinstance(module, HiddenBias):
        return Constant(1.0 if module.kind == "multiplicative" else 0.0)
    if isinstance(module, Router):
        return Normal(ROUTER_STD * config.router_initializer_factor)
    if isinstance(module, nn.Embedding):
        return Normal(1.0)
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
            fill(parameter, _distribution_of(module, name, config), None)


def draws_of(module_name: str, module: nn.Module, config: StMoeConfig, seed: int) -> Iterator[Draw]:
    """Yield the draws of the parameters that ``module`` itself owns: of a stacked expert weight, one for each expert.

    Args:
        module_name: of the module in the model, on which the numbers depend.
        module: on any device, in any dtype and with any share of the experts.
        config: ``initializer_scale``, ``router_initializer_factor`` and the widths.
        seed: ``training.seed``.

    Raises:
        TypeError: a parameter has no initializer.
    """
    for name, parameter in module.named_parameters(recurse=False):
        distribution, full_name = _distribution_of(module, name, config), f"{module_name}.{name}"
        if isinstance(module, Experts):
            for local, expert in enumerate(parameter.detach()):
                yield Draw(expert, distribution, seed_of(seed, full_name, module.first + local))
        else:
            yield Draw(parameter.detach(), distribution, seed_of(seed, full_name))


def initialize_weights(model: nn.Module, config: StMoeConfig, seed: int, threads: int = 1) -> None:
    """Fill every parameter of ``model`` in place, on any device, in any dtype and for any share of the experts.

    Numbers are those of a CPU in float32, so that they do not depend on the device.

    Args:
        model: the model, or a part of it; parameter names are relative to it.
        config: ``initializer_scale``, ``router_initializer_factor`` and the widths.
        seed: ``training.seed``.
        threads: that draw.

    Raises:
        TypeError: a parameter has no initializer.
    """
    draw_all([one for name, module in model.named_modules() for one in draws_of(name, module, config, seed)], threads)
