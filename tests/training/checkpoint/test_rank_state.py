"""Optimizer state that loads only at its own layout: restored there, refused elsewhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optim.parameter import parameter_specs
from optim.partition import Partition, whole
from tests.support.checkpoints import write_checkpoint
from tests.support.small import small_config
from training.checkpoint.optimizer_state.registry import state_format
from training.checkpoint.rank_file import rank_contents
from training.checkpoint.reshard import reshard
from training.checkpoint.resume import find_checkpoint
from training.checkpoint.store.tensor_file import write_tensors
from training.config.errors import ConfigError


class BlockwiseMomentum(torch.optim.Optimizer):
    """Momentum in 8 bits with a scale per block of 4, laid out as bitsandbytes does it."""

    def __init__(self, params: list[nn.Parameter]):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            state = self.state[p] or {"state1": torch.zeros_like(p), "absmax1": torch.zeros(p.numel() // 4), "step": 0}
            momentum = 0.9 * state["state1"].view(-1, 4).float() / 100 * state["absmax1"][:, None] + p.grad.view(-1, 4)
            scale = momentum.abs().amax(1)
            codes = (momentum / scale[:, None] * 100).round().to(torch.int8).view(p.shape)
            self.state[p] = {"state1": codes, "absmax1": scale, "step": state["step"] + 1}
            p -= 0.1 * momentum.view(p.shape)


def _train(optimizer: BlockwiseMomentum, steps: range) -> list[Tensor]:
    parameters = optimizer.param_groups[0]["params"]
    for step in steps:
        for i, p in enumerate(parameters):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + i))
        optimizer.step()
    return [p.detach().clone() for p in parameters]


def test_state_in_blocks_is_restored_bit_for_bit(tmp_path: Path):
    def fresh() -> BlockwiseMomentum:
        return BlockwiseMomentum([nn.Parameter(torch.zeros(size)) for size in (8, 12)])

    def partitions(optimizer: BlockwiseMomentum) -> list[Partition]:
        parameters = optimizer.param_groups[0]["params"]
        return [whole(p, s) for p, s in parameter_specs((str(i), p) for i, p in enumerate(parameters)).items()]

    first, second = fresh(), fresh()
    weights = _train(first, range(3))
    by_rank = state_format("adamw_8bit")
    assert not by_rank.in_rank_files
    ((file, state),) = by_rank.write(first, partitions(first), 0).items()
    path = tmp_path / file
    write_tensors(path, state)
    with pytest.raises(ValueError, match="keeps absmax1 of shape"):
        rank_contents(first, partitions(first), with_state=True)
    contents, tensors = rank_contents(first, partitions(first), with_state=False)
    assert list(contents.states) == ["weight"]
    assert list(tensors) == ["0/weight", "1/weight"]

    for p, weight in zip(second.param_groups[0]["params"], weights, strict=True):
        p.data.copy_(weight)
    by_rank.read(second, partitions(second), tmp_path, 0)
    for a, b in zip(_train(first, range(3, 6)), _train(second, range(3, 6)), strict=True):
        assert torch.equal(a, b)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"rank-state-00000\.safetensors cannot be read"):
        by_rank.read(second, partitions(second), tmp_path, 0)


def test_another_layout_is_refused(tmp_path: Path):
    config = small_config(tmp_path, optimizer={"name": "adamw_8bit"})
    folder = write_checkpoint(config)
    assert find_checkpoint(config, 2, 1).folder == folder
    words = r"optimizer\.name = adamw_8bit .* parallel\.expert_parallel_size = 1, 2 ranks and ZeRO 1$"
    for world_size, zero_stage in ((1, 1), (2, 3)):
        with pytest.raises(ConfigError, match=words):
            find_checkpoint(config, world_size, zero_stage)
    with pytest.raises(ConfigError, match=words):
        reshard(config.run_dir, 2, 2, 1)
