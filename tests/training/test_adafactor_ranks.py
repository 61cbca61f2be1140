"""Adafactor on two ranks, under every ZeRO stage and expert-parallel size, does what it does on one process."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.comm as dist
import pytest
import torch
from torch import Tensor, nn

from common.project import ROOT
from optim.adafactor import Adafactor
from optim.parameter import parameter_specs
from optim.zero_partitions import read_partitions
from tests.support.optimizer import joined, master_weights
from tests.support.ranks import run_ranks
from tests.support.small import global_batch, small_config
from training.config.run import RunConfig, load_config, validate
from training.engine.build import build_engine
from training.engine.step import update
from training.monitoring.monitors.families import FamilySizes

pytestmark = pytest.mark.distributed

LAYOUTS = [(stage, size) for stage in (0, 1, 2, 3) for size in (1, 2)]
# Small matrices are factored and clipping acts; attention and experts [32, 32 to 48], embedding and head [256, 32]; the
# routers [4, 32], position biases [32, 4] and norms keep full second moments.
CLIPPING = 0.5  # of the gradient's norm, so that it acts at every step
ADAFACTOR = {"learning_rate": 2e-2, "min_dim_size_to_factor": 16, "update_clipping": 0.9}


def small(
    folder: str,
    zero: dict[str, Any],
    size: int,
    *,
    optimizer: dict[str, Any] = ADAFACTOR,
    **training: Any,
) -> RunConfig:
    """The small model, with the options of DeepSpeed's ``zero_optimization``."""
    text = json.dumps({"zero_optimization": zero})
    file = Path(folder) / f"{zlib.crc32(text.encode())}-{dist.get_rank()}.json"
    file.write_text(text)
    return small_config(
        Path(folder),
        model={"second_policy": "all", "feed_forward_bias": "additive", "num_layers": 2, "sparse_step": 2},
        parallel={"expert_parallel_size": size},
        optimizer=optimizer,
        training={"deepspeed_config": str(file), **training},
    )


def micro_batches(step: int) -> list[dict[str, Tensor]]:
    """This rank's part of a global batch of 8 sequences: two micro-batches on one process, one on each of two."""
    rank, world = dist.get_rank(), dist.get_world_size()
    batch = global_batch(step, 8)
    return [{k: v[i : i + 4] for k, v in batch.items()} for i in range(4 * rank, 8, 4 * world)]


def train(config: RunConfig, steps: int) -> dict[str, Any]:
    """Losses, gradient norms before clipping, master weights, metrics, bytes of state."""
    engine = build_engine(config, dist.get_world_size(), "cpu")
    sizes = FamilySizes(engine, config.optimizer.gradient_clipping)
    losses, norms = [], []
    for step in range(steps):
        sizes.begin_step(logged=step == steps - 1)
        terms, _ = update(engine, micro_batches(step), 0, 0, step, dist.get_rank())
        losses.append(terms.reduce(config.st_moe_config())["loss"])
        norms.append(float(engine.get_global_grad_norm()))
    optimizer = engine.basic_optimizer
    return {
        "losses": losses,
        "norms": norms,
        "weights": master_weights(optimizer),
        "metrics": sizes.figures(),
        "state_bytes": optimizer.state_nbytes,
    }


def train_small(folder: str, layouts: list[tuple[int, int]], steps: int, beta1: float = 0.0) -> list[dict[str, Any]]:
    optimizer = ADAFACTOR | {"beta1": beta1, "weight_decay": 0.1 if beta1 else 0.0}
    optimizer |= {"gradient_clipping": CLIPPING if beta1 else 0.0}
    return [train(small(folder, {"stage": stage}, size, optimizer=optimizer), steps) for stage, size in layouts]


def assert_same(ranks: list[dict[str, Any]], one: dict[str, Any]) -> None:
    assert ranks[0]["losses"] == ranks[-1]["losses"]
    assert ranks[0]["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert ranks[0]["norms"] == ranks[-1]["norms"] == pytest.approx(one["norms"], rel=1e-5)
    weights = joined([rank["weights"] for rank in ranks])
    assert weights.keys() == one["weights"].keys()
    for name, expected in one["weights"].items():
        assert (weights[name] - expected).norm() <= 1e-6 * expected.norm(), name
    assert ranks[0]["metrics"] == pytest.approx(one["metrics"], rel=1e-4)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("one")
    return run_ranks(train_small, 1, folder, str(folder), [(0, 1)], 8)[0][0]


def test_every_layout_equals_one_process(one_process: dict[str, Any], tmp_path: Path):
    ranks = run_ranks(train_small, 2, tmp_path, str(tmp_path), LAYOUTS, 8)
    for both in zip(*ranks, strict=True):
        assert_same(list(both), one_process)
    assert one_process["losses"][-1] < one_process["losses"][0] - 0.05
    metrics = one_process["metrics"]
    families = {"embedding", "attention", "feed_forward", "experts", "router", "norm", "relative_bias", "head"}
    assert {name.partition("/")[2] for name in metrics} == families
    assert 0 < sum(metrics[f"clipped_fraction/{family}"] for family in families) < len(families)
    for family in families:
        assert metrics[f"clipped_update_rms/{family}"] <= min(0.9 * 1.0001, metrics[f"update_rms/{family}"] * 1.0001)


def test_momentum_weight_decay_and_clipping_at_every_stage(tmp_path: Path):
    one = run_ranks(train_small, 1, tmp_path, str(tmp_path), [(1, 1)], 4, 0.9)[0][0]  # as DeepSpeed's ZeRO clips
    assert min(one["norms"]) > CLIPPING
    for both in zip(*run_ranks(train_small, 2, tmp_path, str(tmp_path), LAYOUTS[1::2], 4, 0.9), strict=True):
        assert_same(list(both), one)


def train_variants(folder: str) -> dict[str, dict[str, Any]]:
    offload = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    sub_groups = {"stage": 3, "sub_group_size": 5000}
    configs = {
        "fp32": small(folder, {"stage": 1}, 2),
        "offload": small(folder, offload, 2),
        "sub-groups": small(folder, sub_groups, 2),
        "round robin": small(folder, {"stage": 2, "round_robin_gradients": True}, 2),
        "bf16 sums": small(folder, {"stage": 1}, 2, precision="bf16", gradient_accumulate_dtype="bf16"),
        **{f"bf16 {stage}": small(folder, {"stage": stage}, 2, precision="bf16") for stage in (0, 1, 2, 3)},
        **{f"cast {stage}": small(folder, {"stage": stage}, 2, precision="bf16_autocast") for stage in (0, 1, 2, 3)},
    }
    return {name: train(config, 4) for name, config in configs.items()}


def test_offload_sub_groups_and_bf16(tmp_path: Path):
    ranks = run_ranks(train_variants, 2, tmp_path, str(tmp_path))
    full = ranks[0]["fp32"]
    for name in ("offload", "sub-groups", "round robin"):
        assert_same([rank[name] for rank in ranks], full | {"weights": joined([r["fp32"]["weights"] for r in ranks])})
    for name, run in ranks[0].items():
        assert all(math.isfinite(loss) for loss in run["losses"])
        assert run["losses"] == pytest.approx(full["losses"], rel=2e-2), name
        if name.startswith(("bf16", "cast")):
            assert run["losses"] != full["losses"], name


class OddOnes(nn.Module):
    """A frozen parameter and so few trained ones that a rank's partition is only padding."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Parameter(torch.tensor([2.0]))
        self.frozen = nn.Parameter(torch.tensor([3.0]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.trained * self.frozen * x).square().sum()


def train_odd_ones() -> list[list[float]]:
    return [train_odd_ones_at(stage) for stage in (1, 2, 3)]


def train_odd_ones_at(stage: int) -> list[float]:
    model = OddOnes()
    specs = parameter_specs(model.named_parameters())
    optimizer = Adafactor([model.trained], specs, lr=0.1)
    config = {
        "train_batch_size": dist.get_world_size(), "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    optimizer.bind(read_partitions(engine.optimizer, specs))
    for step in range(3):
        engine.backward(engine(torch.tensor([1.0 + step])))
        engine.step()
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        return [model.trained.item(), model.frozen.item()]


def test_frozen_parameters_and_ranks_with_nothing_but_padding(tmp_path: Path):
    ranks = run_ranks(train_odd_ones, 2, tmp_path)
    plain = OddOnes()
    optimizer = Adafactor([plain.trained], parameter_specs([("trained", plain.trained)]), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        plain(torch.tensor([1.0 + step])).backward()
        optimizer.step()
    for weights in ranks[0] + ranks[1]:
        assert weights == pytest.approx([plain.trained.item(), 3.0], rel=1e-6)


def train_tiny(folder: str, layouts: list[tuple[int, int]]) -> list[dict[str, Any]]:
    results = []
    for stage, size in layouts:
        file = Path(folder) / f"ds-{dist.get_rank()}.json"
        file.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        values = load_config(ROOT / "configs" / "tiny.yaml", ["model.second_policy=all"]).model_dump()
        values["parallel"] = {"expert_parallel_size": size}
        values["training"] |= {"global_batch_size": 8, "micro_batch_size": 4, "deepspeed_config": str(file)}
        results.append(train(validate(values), 50))
    return results


@pytest.mark.long  # 450 steps of a model eight times as large: six minutes
def test_fifty_steps_of_tiny_at_every_layout_equal_one_process(tmp_path: Path):
    one = run_ranks(train_tiny, 1, tmp_path, str(tmp_path), [(0, 1)])[0][0]
    ranks = run_ranks(train_tiny, 2, tmp_path, str(tmp_path), LAYOUTS)
    for layout, both in zip(LAYOUTS, zip(*ranks, strict=True), strict=True):
        loss = max(abs(a - b) / b for a, b in zip(both[0]["losses"], one["losses"], strict=True))
        weights = joined([rank["weights"] for rank in both])
        weight = max(float((weights[name] - w).norm() / w.norm()) for name, w in one["weights"].items())
        print(f"(ZeRO, EP) {layout}: largest relative difference of a loss {loss:.1e}, of a tensor {weight:.1e}")
        assert_same(list(both), one)
