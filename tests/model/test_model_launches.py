"""How many operations a micro-batch dispatches, with fake tensors: a bound, so that what was gained is not lost again.

On a GPU these are kernel launches. Of a dense model: in a sparse layer, kernels of Triton do most of the work there.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from model.config import StMoeConfig
from model.losses import LossDivisors
from model.st_moe import StMoeForConditionalGeneration
from tests.support.launches import Launches

SIZES = {"vocab_size": 256, "d_model": 64, "d_ff": 96, "d_kv": 16, "num_heads": 4, "sparse_step": 2}


def launches(*, layers: int, autocast: bool, **options: object) -> tuple[int, int]:
    """Operations of the forward and of the backward pass over a second micro-batch, whose gradients accumulate."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = StMoeForConditionalGeneration(StMoeConfig(**SIZES | options, num_layers=layers)).train()
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        ids, labels = (torch.ones(4, length, dtype=torch.int64) for length in (64, 16))
        divisors = LossDivisors(torch.ones(()), torch.ones(()))
        with Launches() as forward, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(input_ids=ids, labels=labels, loss_divisors=divisors).loss
        with Launches() as backward:
            loss.backward()
    assert not forward.host_reads
    return forward.total, backward.total


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StMoeForConditionalGeneration, "_init_weights", lambda self, module: None)


# Beside its 13 products forward and 26 backward, a pair of blocks has five norms and three attentions, which on a CPU
# are many operations each. Without what ``products`` does there were 149 and 228 under autocast.
@pytest.mark.parametrize(("autocast", "forward", "backward"), [(True, 112, 198), (False, 104, 182)])
def test_of_a_dense_block_of_each_stack(autocast: bool, forward: int, backward: int) -> None:
    one, two = (launches(layers=layers, autocast=autocast, num_experts=0) for layers in (1, 2))
    assert two[0] - one[0] <= forward
    assert two[1] - one[1] <= backward


def test_of_losses_and_what_stacks_share() -> None:
    assert sum(launches(layers=1, autocast=True, num_experts=0)) <= 462  # of which one block of each stack 310
