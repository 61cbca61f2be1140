"""Expert parallelism gives the same training as all experts on every rank, and as one process."""

import math
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import pytest
import torch
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer

from model.config import StMoeConfig
from model.initialization import initialize_weights
from model.st_moe import StMoeForConditionalGeneration
from parallel.config import ParallelConfig
from tests.support.ranks import run_ranks
from tests.support.small import SMALL_MODEL, TWO_BLOCKS, global_batch, small_config
from training.engine.build import build_engine, build_model
from training.engine.step import evaluate, update

pytestmark = pytest.mark.distributed

STEPS = 12
DENSE = "encoder.blocks.0.feed_forward.w_in.weight"


def _train(
    folder: str, zero_stage: int, expert_parallel_size: int, policy: str, precision: str = "fp32"
) -> dict[str, Any]:
    """Losses, gradient norms and the validation loss of ``STEPS`` updates at 8 sequences each."""
    rank, world = dist.get_rank(), dist.get_world_size()
    config = small_config(
        Path(folder),
        # at the default 0.2 an untrained router leaves nothing to chance
        model=TWO_BLOCKS | {"second_policy": policy, "second_threshold": 0.9},
        zero_stage=zero_stage,
        parallel={"expert_parallel_size": expert_parallel_size},
        training={"precision": precision},
    )
    engine = build_engine(config, world, "cpu")
    losses, norms = [], []
    for step in range(STEPS):
        # micro-batches of 4 sequences: two on a single process, one on each of two
        micro = [{k: v[i : i + 4] for k, v in global_batch(step, 8).items()} for i in range(4 * rank, 8, 4 * world)]
        terms, _ = update(engine, micro, 0, 0, step, rank)
        losses.append(terms.reduce(config.st_moe_config()))
        norms.append(float(engine.get_global_grad_norm()))
    micro = [{k: v[i : i + 4] for k, v in global_batch(999, 8).items()} for i in range(4 * rank, 8, 4 * world)]
    validation = evaluate(engine, micro, 0, 0, rank).reduce(config.st_moe_config())
    return {"losses": losses, "norms": norms, "validation": validation}


def _train_both(folder: str, zero_stage: int) -> dict[str, Any]:
    return {
        "ep1": _train(folder, zero_stage, 1, "random"),
        "ep2": _train(folder, zero_stage, 2, "random"),
        "all": _train(folder, zero_stage, 2, "all"),
    }


def _assert_same(a: dict[str, Any], b: dict[str, Any], tolerance: float) -> None:
    for left, right in zip(a["losses"], b["losses"], strict=True):
        for name in ("loss", "cross_entropy", "load_balance_loss", "router_z_loss"):
            assert left[name] == pytest.approx(right[name], abs=tolerance, rel=tolerance), name
    assert a["norms"] == pytest.approx(b["norms"], rel=tolerance)
    assert a["validation"]["loss"] == pytest.approx(b["validation"]["loss"], rel=tolerance)


@pytest.fixture(scope="module")
def single_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same global batches on one process; without randomness, whose draws depend on the rank."""
    folder = tmp_path_factory.mktemp("single")
    return run_ranks(_train, 1, folder, str(folder), 1, 1, "all")[0]


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_expert_parallel_training_equals_replicated_experts_and_one_process(
    zero_stage: int, single_process: dict[str, Any], tmp_path: Path
):
    ranks = run_ranks(_train_both, 2, tmp_path, str(tmp_path), zero_stage)
    assert ranks[0] == ranks[1]  # reported numbers are global
    _assert_same(ranks[0]["ep1"], ranks[0]["ep2"], 1e-5)
    _assert_same(ranks[0]["all"], single_process, 1e-5)
    first, last = ranks[0]["ep2"]["losses"][0]["loss"], ranks[0]["ep2"]["losses"][-1]["loss"]
    assert last < first - 0.05, "the model must have learned something for the comparison to mean anything"


def _train_precisions(folder: str) -> dict[str, Any]:
    return {precision: _train(folder, 1, 2, "all", precision) for precision in ("fp32", "bf16", "bf16_autocast")}


def test_bf16_trains_close_to_fp32(tmp_path: Path):
    runs = run_ranks(_train_precisions, 2, tmp_path, str(tmp_path))[0]
    for precision in ("bf16", "bf16_autocast"):
        for low, full in zip(runs[precision]["losses"], runs["fp32"]["losses"], strict=True):
            assert math.isfinite(low["loss"])
            assert low["loss"] == pytest.approx(full["loss"], rel=2e-2)
        assert runs[precision]["losses"] != runs["fp32"]["losses"]


def _expert_weights() -> dict[str, torch.Tensor]:
    """Full names with global expert numbers → weights on this rank, at expert-parallel size = world size."""
    parallel = ParallelConfig(expert_parallel_size=dist.get_world_size())
    model = build_model(StMoeConfig(**SMALL_MODEL), parallel, seed=3, device="cpu")
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, AutoEPMoELayer):
            first = module.ep_rank * module.num_local_experts
            for weight in ("w1", "w2", "w3"):
                for local, expert in enumerate(getattr(module.experts, weight)):
                    found[f"{name}.experts.{weight}.{first + local}"] = expert.detach().clone()
    found["dense"] = model.get_parameter(DENSE).detach().clone()
    return found


def test_experts_begin_the_same_at_every_expert_parallel_size(tmp_path: Path):
    plain = StMoeForConditionalGeneration(StMoeConfig(**SMALL_MODEL))
    initialize_weights(plain, plain.config, seed=3)
    for world_size in (2, 4):
        ranks = run_ranks(_expert_weights, world_size, tmp_path)
        together = {name: weight for rank in ranks for name, weight in rank.items()}
        experts = [name for name in together if name != "dense"]
        assert len(experts) == 2 * 3 * SMALL_MODEL["num_experts"]
        assert all(len(rank) - 1 == len(experts) // world_size for rank in ranks)
        for name in experts:
            parameter, _, expert = name.rpartition(".")
            assert torch.equal(together[name], plain.get_parameter(parameter)[int(expert)]), name
        assert all(torch.equal(rank["dense"], plain.get_parameter(DENSE)) for rank in ranks)
