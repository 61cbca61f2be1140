"""ZeRO 3 steps float32 weights themselves: the same training to the bit as with a second copy, and less memory."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed.comm as dist
import pytest
import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor

from optim.stage_three import weights_once
from tests.support.planned import masters, storage_bytes, weights
from tests.support.ranks import run_ranks
from tests.support.small import global_batch
from tests.training.test_adafactor_ranks import small
from training.config.run import RunConfig
from training.engine import build
from training.engine.parameters import engine_partitions
from training.engine.step import evaluate, update

METHOD = "_create_fp32_partitions"
CLIPPED = {"min_dim_size_to_factor": 16, "gradient_clipping": 0.5}
ADAMW = {"name": "adamw", "unit_learning_rate": 1e-2, "weight_decay": 0.1}
GATHERED = {"stage": 3, "stage3_param_persistence_threshold": 100, "sub_group_size": 5000}


def configs(folder: str) -> dict[str, RunConfig]:
    """Both optimizers, experts spread or not, weights that stay gathered or not, all trained or some."""
    return {
        "adafactor": small(folder, GATHERED, 2, optimizer=CLIPPED, micro_batch_size=2),
        "adamw": small(folder, {"stage": 3}, 1, optimizer=ADAMW, trainable="non_moe"),
    }


def train(config: RunConfig, copies: AbstractContextManager[None]) -> dict[str, Any]:
    """Two steps and an evaluation with an engine that is built inside a context in place of ``weights_once``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "weights_once", lambda: copies)
        engine = build.build_engine(config, 2, "cpu")
    rank, size = dist.get_rank(), config.training.micro_batch_size
    losses = []
    for step in range(2):
        batch = global_batch(step, 8)
        micro = [{k: v[i : i + size] for k, v in batch.items()} for i in range(size * rank, 8, 2 * size)]
        terms, _ = update(engine, micro, 0, 0, step, rank)
        losses.append(terms.reduce(config.st_moe_config())["loss"])
    losses.append(evaluate(engine, micro[:1], 0, 0, rank).reduce(config.st_moe_config())["loss"])
    own = list(weights(engine))
    return {
        "losses": losses,
        "weights": [tensor.clone() for tensor in own],
        "trained": storage_bytes(partition.tensor for partition in engine_partitions(engine)),
        "copies": storage_bytes(masters(engine), but=own),
    }


def train_all(folder: str) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [train(config, context) for context in (nullcontext(), weights_once())]
        for name, config in configs(folder).items()
    }


@pytest.mark.distributed
def test_the_same_training_without_the_copy(tmp_path: Path):
    for of_rank in run_ranks(train_all, 2, tmp_path, str(tmp_path)):
        for name, (twice, once) in of_rank.items():
            assert once["losses"] == twice["losses"], name
            assert len(set(once["losses"])) == 3
            assert all(map(torch.equal, once["weights"], twice["weights"])), name
            assert twice["copies"] == twice["trained"] == once["trained"] > 0
            assert once["copies"] == 0


def masters_of(zero: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, *, always_copies: bool = False) -> list[Tensor]:
    """Make an optimizer's master weights as DeepSpeed does: itself if the devices are equal, else a copy."""

    def create(zero: Any) -> None:
        for own in zero.fp16_partitioned_groups_flat:
            is_there = own.device == zero.device and not zero.offload_optimizer and not always_copies
            zero.fp32_partitioned_groups_flat.append(own if is_there else own.to(zero.device, copy=True))

    monkeypatch.setattr(DeepSpeedZeroOptimizer_Stage3, METHOD, create)
    with weights_once():
        getattr(DeepSpeedZeroOptimizer_Stage3, METHOD)(zero)
    assert getattr(DeepSpeedZeroOptimizer_Stage3, METHOD) is create
    return zero.fp32_partitioned_groups_flat


def zero_on(device: Any, *, offload: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        device=device, offload_optimizer=offload, fp16_partitioned_groups_flat=[torch.ones(3), torch.ones(2)],
        fp32_partitioned_groups_flat=[],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("device", "offload", "copied"),
    [("cpu", False, False), (torch.device("cpu"), False, False), ("cpu", True, True), ("meta", False, True)],
)
def test_weights_elsewhere_are_copied(
    device: Any, offload: bool, copied: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    zero = zero_on(device, offload=offload)
    made = masters_of(zero, monkeypatch)
    assert [a is not b for a, b in zip(made, zero.fp16_partitioned_groups_flat, strict=True)] == [copied, copied]
    assert zero.device is device
    assert caplog.messages == []


def test_a_deepspeed_that_is_not_as_expected_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    assert len(masters_of(zero_on("cpu"), monkeypatch, always_copies=True)) == 2
    assert ["twice" in message for message in caplog.messages] == [True]
    monkeypatch.delattr(DeepSpeedZeroOptimizer_Stage3, METHOD)
    with weights_once():
        assert not hasattr(DeepSpeedZeroOptimizer_Stage3, METHOD)
    assert ["twice" in message for message in caplog.messages] == [True, True]
