"""Every gating routes and trains the same, wherever the experts are, and when activations are recomputed."""

from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import pytest
import torch
from torch import Tensor

import model.moe.layer
from model.moe.router import Routing, route
from tests.support.gatings import GATINGS
from tests.support.ranks import run_ranks
from tests.support.small import TWO_BLOCKS, global_batch, small_config
from training.engine.build import build_engine
from training.engine.step import update

pytestmark = pytest.mark.distributed

STEPS = 2
KINDS: dict[str, dict[str, Any]] = {"top_1": {"top_n": 1}, "top_3": {"top_n": 3}} | {
    kind: options for kind, options in GATINGS.items() if kind != "dropless_flaxformer"
}
RECOMPUTED = ("top_n", "expert_choice", "dropless")


def _train(
    folder: str, zero_stage: int, options: dict[str, Any], expert_parallel_size: int, *, recompute: bool = False,
    empty_rank: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Losses and gradient norms of ``STEPS`` updates, and the routings of the first, layer by layer."""
    rank, world = dist.get_rank(), dist.get_world_size()
    config = small_config(
        Path(folder),
        # below 0.9 the second expert is left to chance; at the default 0.2 an untrained router never leaves it
        model=TWO_BLOCKS | {"train_capacity_factor": 1.0, "second_threshold": 0.9} | options,
        zero_stage=zero_stage,
        parallel={"expert_parallel_size": expert_parallel_size},
        training={"activation_checkpointing": recompute},
    )
    engine = build_engine(config, world, "cpu")
    routings: list[Routing] = []

    def recorded(*args: Any, **kwargs: Any) -> Routing:
        routings.append(route(*args, **kwargs))
        return routings[-1]

    model.moe.layer.route = recorded
    losses, norms, first = [], [], 0
    for step in range(STEPS):
        micro = {k: v[4 * rank : 4 * rank + 4] for k, v in global_batch(step, 8).items()}
        if rank == empty_rank:
            micro = {"input_ids": micro["input_ids"] * 0, "labels": torch.full_like(micro["labels"], -100)}
        terms, _ = update(engine, [micro], 0, 0, step, rank)
        first = first or len(routings)
        losses.append(terms.reduce(config.st_moe_config()))
        norms.append(float(engine.get_global_grad_norm()))
    decisions = [(r.expert_NGS, torch.where(r.kept_NGS, r.position_NGS, -1), r.gate_NGS.detach())
                 for r in routings[:first]]  # fmt: skip
    return {"losses": losses, "norms": norms, "routings": decisions}


def _train_all(folder: str, zero_stage: int, kinds: list[str]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for kind in kinds:
        results[kind] = {ep: _train(folder, zero_stage, KINDS[kind], ep) for ep in (1, 2)}
        if kind in RECOMPUTED:
            results[kind]["recomputed"] = _train(folder, zero_stage, KINDS[kind], 2, recompute=True)
    # ranks that hold unequal numbers of tokens must not deadlock
    results["empty_1"] = {ep: _train(folder, zero_stage, KINDS["dropless"], ep, empty_rank=1) for ep in (1, 2)}
    return results


def _assert_same_routing(a: list[tuple[Tensor, ...]], b: list[tuple[Tensor, ...]]) -> None:
    assert len(a) == len(b) == 2
    for (expert, position, gate), (expert_b, position_b, gate_b) in zip(a, b, strict=True):
        assert torch.equal(expert, expert_b)
        assert torch.equal(position, position_b)
        torch.testing.assert_close(gate, gate_b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("zero_stage", "kinds"), [(1, list(KINDS)), (2, ["dropless"]), (3, ["expert_choice", "dropless"])]
)
def test_every_gating_is_independent_of_the_expert_parallel_size(zero_stage: int, kinds: list[str], tmp_path: Path):
    for rank, results in enumerate(run_ranks(_train_all, 2, tmp_path, str(tmp_path), zero_stage, kinds)):
        for kind, runs in results.items():
            one, two = runs[1], runs[2]
            for left, right in zip(one["losses"], two["losses"], strict=True):
                assert left == pytest.approx(right, rel=1e-5, abs=1e-7), kind
            assert one["norms"] == pytest.approx(two["norms"], rel=1e-5), kind
            assert all(norm > 0 for norm in one["norms"]), kind
            _assert_same_routing(one["routings"], two["routings"])
            if kind in RECOMPUTED:
                assert runs["recomputed"]["losses"] == two["losses"], kind
                # each layer routes again in the backward pass, the decoder's first, to the same slots
                again = runs["recomputed"]["routings"]
                _assert_same_routing(again[:2], two["routings"])
                _assert_same_routing(again[:1:-1], two["routings"])
            dropped = one["losses"][0]["dropped_fraction"]
            assert (dropped == 0) == (kind.startswith(("dropless", "empty"))), kind
            if kind == f"empty_{rank}":
                assert all((position == -1).all() for _, position, _ in two["routings"])
        encoder = {tuple(results[kind][1]["routings"][0][1].flatten().tolist()) for kind in kinds}
        assert len(encoder) == len(kinds), "every gating routes in its own way"
