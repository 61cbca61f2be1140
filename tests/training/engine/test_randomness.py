"""Sampling in the routers is a function of (seed, step, micro-batch, layer, rank), and of nothing else."""

from typing import Any

import pytest
import torch
from torch import Tensor

import model.moe.layer
from model.config import StMoeConfig
from model.initialization import initialize_weights
from model.moe.router import Router, route
from model.st_moe import StMoeForConditionalGeneration
from tests.support.small import SMALL_MODEL, global_batch
from training.engine.randomness import seed_everything


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the random policy requests in each sparse layer, after seeding from a key; every gate is 1/2."""
    config = StMoeConfig(**SMALL_MODEL | {"sparse_step": 2, "second_threshold": 0.9, "train_capacity_factor": 9.0})
    network = StMoeForConditionalGeneration(config).train()
    initialize_weights(network, config, seed=0)
    for module in network.modules():
        if isinstance(module, Router):
            torch.nn.init.zeros_(module.weight)
    batch, recorded = global_batch(0, 4), []

    def recording(*args: Any, **kwargs: Any) -> Any:
        recorded.append(route(*args, **kwargs))
        return recorded[-1]

    monkeypatch.setattr(model.moe.layer, "route", recording)

    def run(*key: int | str) -> list[Tensor]:
        torch.rand(17)  # whatever was drawn before
        recorded.clear()
        seed_everything(*key)
        network(**batch)
        return [routing.kept_NGS[1].flatten() for routing in recorded]

    return run


def test_the_same_key_repeats_and_every_part_of_it_matters(requests: Any) -> None:
    key = ("train", 3, 100, 1, 0)  # split, seed, step, rank, micro-batch
    first = requests(*key)
    assert len(first) == 4
    assert all(0.4 < layer.float().mean() < 0.6 for layer in first)  # 1/2 / 0.9, and some padding
    for mine, again in zip(first, requests(*key), strict=True):
        assert torch.equal(mine, again)
    for other in (("validation", 3, 100, 1, 0), ("train", 4, 100, 1, 0), ("train", 3, 101, 1, 0),
                  ("train", 3, 100, 0, 0), ("train", 3, 100, 1, 1), ("train", 31, 0, 0, 1)):  # fmt: skip
        for mine, theirs in zip(first, requests(*other), strict=True):
            assert not torch.equal(mine, theirs), other


def test_layers_draw_independently(requests: Any) -> None:
    layers = requests("train", 0, 0, 0, 0)
    for first, second in ((layers[0], layers[1]), (layers[2], layers[3])):  # the encoder's, the decoder's
        assert not torch.equal(first, second)
