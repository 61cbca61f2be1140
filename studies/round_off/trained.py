"""Measures trained models: their sparse layers on real activations, and their cross-entropy in several precisions.

Shape suffixes: B = sequences, L = positions, T = real tokens, d = d_model.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.streaming.validation import validation_batches
from model.losses import IGNORED_LABEL
from model.moe.layer import SparseFeedForward
from model.moe.router import Router
from model.st_moe import StMoeForConditionalGeneration
from studies.round_off.measure import measure_layer, weights_of
from studies.round_off.rows import Row
from training.checkpoint.resume import read_checkpoint
from training.config.errors import ConfigError
from training.config.run import validate
from training.export.export import VOCABULARY_KEY
from training.export.weights import read_model
from training.run.kept_inputs import vocabulary_of

EXAMPLES = 32  # held-out examples
CROSS_ENTROPY_FACTORS = (1.0, 10.0, 100.0)  # of the trained routers' weights
AS_TRAINED = 1.0


@dataclass(frozen=True)
class ModelPrecision:
    """What is computed in bf16 in a forward pass of the whole model.

    Args:
        name: in rows and tables.
        router: the router's inputs, weights and logits (``model.router_precision: bf16``).
        rest: products of all other layers (autocast).
    """

    name: str
    router: bool
    rest: bool


IN_FP32 = ModelPrecision("fp32", router=False, rest=False)
ROUTER_IN_BF16 = ModelPrecision("router", router=True, rest=False)
MODEL_PRECISIONS = (
    IN_FP32,
    ROUTER_IN_BF16,
    ModelPrecision("selective", router=False, rest=True),
    ModelPrecision("everything", router=True, rest=True),
)


def measure_run(run_dir: Path, tokens: int) -> Iterator[Row]:
    """Yield the rows of every sparse layer (``layer``), then those of the cross-entropy (``cross_entropy``).

    Args:
        run_dir: of a run with a checkpoint, and with its held-out text.
        tokens: real tokens of each layer to take.

    Raises:
        ConfigError: there is no checkpoint, the model is dense or its experts are not plain GEGLU.
    """
    checkpoint, state = read_checkpoint(run_dir)
    config = validate(state.config)
    model_config = config.st_moe_config()
    if not model_config.num_experts:
        raise ConfigError(f"{run_dir} is a run of a dense model: name a run of a sparse model")
    if model_config.feed_forward != "geglu" or model_config.feed_forward_bias != "none":
        raise ConfigError(f"{run_dir}: the study reads experts with model.feed_forward = geglu and without bias")
    tokenizer = vocabulary_of(run_dir, config, state.data["identity"][VOCABULARY_KEY])
    size = min(config.training.micro_batch_size, EXAMPLES)
    found = validation_batches(
        config.data, tokenizer, rank=0, world_size=1, batch_size=size, num_batches=EXAMPLES // size
    )
    batches = [{name: torch.from_numpy(batch[name]) for name in ("input_ids", "labels")} for batch in found]
    model = read_model(checkpoint, model_config)
    for name, (layer, x_Td) in layer_inputs(model, batches).items():
        for row in measure_layer(x_Td[:tokens], weights_of(layer), model_config.top_n):
            yield {"layer": name, **row}
    for factor in CROSS_ENTROPY_FACTORS:
        with scaled_routers(model, factor):
            for precision in MODEL_PRECISIONS if factor == AS_TRAINED else (IN_FP32, ROUTER_IN_BF16):
                value = cross_entropy(model, batches, precision)
                yield {"factor": factor, "precision": precision.name, "cross_entropy": value}


def routers_of(model: nn.Module) -> list[Router]:
    """Return the routers of a model."""
    return [module for module in model.modules() if isinstance(module, Router)]


@torch.no_grad()
def layer_inputs(
    model: StMoeForConditionalGeneration, batches: list[dict[str, Tensor]]
) -> dict[str, tuple[SparseFeedForward, Tensor]]:
    """Return each sparse layer by name with its inputs for the real tokens, float32 ``[T, d]``."""
    layers = [module for module in model.modules() if isinstance(module, SparseFeedForward)]
    seen: dict[SparseFeedForward, list[Tensor]] = {layer: [] for layer in layers}

    def see(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        x_BLd, mask_BL = inputs[:2]
        assert isinstance(layer, SparseFeedForward)
        seen[layer].append(x_BLd[mask_BL.bool()].float())

    hooks = [layer.register_forward_pre_hook(see) for layer in layers]
    for batch in batches:
        model(**batch)
    for hook in hooks:
        hook.remove()
    names = model.config.sparse_layer_names()
    return {name: (layer, torch.cat(seen[layer])) for name, layer in zip(names, layers, strict=True)}


@contextlib.contextmanager
def scaled_routers(model: nn.Module, factor: float) -> Iterator[None]:
    """Multiply the weights of all routers by a factor for a while."""
    routers = routers_of(model)
    weights = [router.weight.detach().clone() for router in routers]
    with torch.no_grad():
        for router in routers:
            router.weight.mul_(factor)
        yield
        for router, weight in zip(routers, weights, strict=True):
            router.weight.copy_(weight)


@torch.no_grad()
def cross_entropy(
    model: StMoeForConditionalGeneration, batches: list[dict[str, Tensor]], precision: ModelPrecision
) -> float:
    """Return the model's cross-entropy, nats per target token; draws of second experts are the same in every call."""
    routers = routers_of(model)
    before = [router.low_precision for router in routers]
    for router in routers:
        router.low_precision = precision.router
    total, targets = 0.0, 0
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision.rest):
        for number, batch in enumerate(batches):
            torch.manual_seed(number)
            count = int((batch["labels"] != IGNORED_LABEL).sum())
            total += float(model(**batch).cross_entropy) * count
            targets += count
    for router, low in zip(routers, before, strict=True):
        router.low_precision = low
    return total / targets
