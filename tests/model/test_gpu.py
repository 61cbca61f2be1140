"""The model on a CUDA device gives what it gives on a CPU."""

from typing import Any

import pytest
import torch

from model.config import StMoeConfig
from model.initialization import initialize_weights
from model.st_moe import StMoeForConditionalGeneration
from tests.support.gatings import GATINGS
from tests.support.small import SMALL_MODEL, global_batch

pytestmark = pytest.mark.gpu


def outputs_and_gradients(device: str, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Loss, logits and every gradient of one batch, without random draws."""
    policy = {"second_policy": "all"} if options["gating"] == "top_n" else {}  # the others draw nothing
    config = StMoeConfig(**SMALL_MODEL | policy | options)
    model = StMoeForConditionalGeneration(config)
    initialize_weights(model, config, seed=0)
    model.to(device).train()
    output = model(**{name: tensor.to(device) for name, tensor in global_batch(0, 4).items()})
    output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    found = {"loss": output.loss.detach(), "logits": output.logits.detach(), **gradients}
    return {name: tensor.cpu() for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize("gating", GATINGS)
def test_every_gating_equals_the_cpu(gating: str):
    expected = outputs_and_gradients("cpu", GATINGS[gating])
    found = outputs_and_gradients("cuda", GATINGS[gating])
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-3, atol=1e-5), name
