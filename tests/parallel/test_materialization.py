"""Modules are made, filled and partitioned in turn: the same partitions as DeepSpeed's, and never more memory."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import deepspeed
import deepspeed.comm as dist
import pytest
import torch
from torch import nn

from model.initialization import initialize_weights
from model.st_moe import StMoeForConditionalGeneration
from parallel import materialization
from parallel.materialization import materialize
from tests.support.ranks import run_ranks
from tests.support.small import TWO_BLOCKS, small_config
from training.engine import build
from training.engine.build import build_engine

# Experts are most of the weights, and no other module is as large.
MODEL = TWO_BLOCKS | {"num_experts": 8, "d_ff": 64, "feed_forward_bias": "multiplicative"}
# Parameter groups by shape, by kind and by process group.
OPTIMIZER = {"name": "adamw", "weight_decay": 0.1, "learning_rate": 0.01, "unit_learning_rate": 0.02}


class Tree(nn.Module):
    """Modules with 2, 0, 6, 3, 3 and 1 numbers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.empty(2))
        self.outer = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(3, 1, bias=False))
        self.scale, self.frozen = nn.LayerNorm(3, bias=False), nn.Linear(1, 1, bias=False)
        self.frozen.weight.requires_grad_(False)
        vars(self.outer[1].weight)["kind"] = "marked"


def test_batches_keep_the_order_and_are_no_larger_than_the_largest_module() -> None:
    with torch.device("meta"):
        tree = Tree()
    before, sizes, told = list(tree.parameters()), [], []

    def fill(modules: list[materialization.Named]) -> None:
        parameters = [p for _, module in modules for p in module.parameters(recurse=False)]
        sizes.append([p.numel() for p in parameters])
        waiting = [p.is_meta for p in tree.parameters()]
        assert waiting == sorted(waiting) and not any(p.is_meta for p in parameters)  # made in order
        for p in parameters:
            p.data.fill_(sum(map(len, sizes)))

    materialize(tree, "cpu", torch.bfloat16, fill, told=lambda: told.append(len(sizes)))
    assert sizes == [[2], [6], [3, 3], [1]] and told == [1, 2, 3, 4]
    for old, new in zip(before, tree.parameters(), strict=True):
        assert new.dtype == torch.bfloat16 and new.shape == old.shape and new.requires_grad == old.requires_grad
    assert vars(tree.outer[1].weight)["kind"] == "marked"


def _whole(model: nn.Module) -> int:
    """Numbers of the parameters that are in memory and not partitioned."""
    return sum(p.numel() for p in model.parameters() if not p.is_meta)


def _partitions(engine: Any) -> dict[str, Any]:
    found = {}
    for name, p in engine.module.named_parameters():
        group, part = p.ds_process_group, p.ds_tensor
        size = part.numel()  # with padding
        filled = min(size, max(0, p.ds_numel - size * dist.get_rank(group=group)))
        ranks = [dist.get_global_rank(group, i) for i in range(dist.get_world_size(group=group))]
        same = {"id": p.ds_id, "ranks": ranks, "persist": p.ds_persist, "shape": list(p.ds_shape)}
        found[name] = same | {"part": part[:filled].clone(), "first_id": next(engine.module.parameters()).ds_id}
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    groups = [[names[parameter] for parameter in group] for group in engine.optimizer.fp16_groups]
    rates = [[group["lr"], group["weight_decay"]] for group in engine.optimizer.param_groups]
    return {"parameters": found, "groups": groups, "rates": rates}


def _build(folder: str, precision: str) -> dict[str, Any]:
    """Partitions of an engine; of one that DeepSpeed partitions; weights; numbers whole at a time; of the largest."""
    sections: dict[str, Any] = {
        "parallel": {"expert_parallel_size": 2},
        "training": {"precision": precision},
        "optimizer": OPTIMIZER,
    }
    config = small_config(Path(folder), zero_stage=3, model=MODEL, **sections)
    models, whole, told = [], [], []
    meta_model, all_draws = build.meta_model, build.draw_all

    def made(*args: Any, **kwargs: Any) -> nn.Module:
        models.append(meta_model(*args, **kwargs))
        return models[-1]

    def drawn(*args: Any) -> None:
        whole.append(_whole(models[-1]))
        all_draws(*args)

    with patch.multiple(build, meta_model=made, draw_all=drawn):
        engine = build_engine(config, 2, "cpu", told=lambda: told.append(_whole(models[-1])))
    result: dict[str, Any] = {"ours": _partitions(engine), "whole": whole, "told": told}
    weights = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            weights[name] = parameter.detach().clone()
    sizes = [sum(p.ds_numel for p in module.parameters(recurse=False)) for module in engine.module.modules()]
    result |= {"weights": weights, "largest": max(sizes)}
    with patch.object(materialization.Partitioner, "__call__", lambda *_: None):
        result["theirs"] = _partitions(build_engine(config, 2, "cpu"))
    return result


@pytest.mark.distributed
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_zero_3_partitions_each_module_before_the_next_is_made(precision: str, tmp_path: Path) -> None:
    """Experts in their own group, everything else over all ranks, as DeepSpeed partitions a complete model."""
    plain = StMoeForConditionalGeneration(small_config(tmp_path, model=MODEL).st_moe_config())
    initialize_weights(plain, plain.config, seed=0)
    expected = dict(plain.named_parameters())
    for rank, result in enumerate(run_ranks(_build, 2, tmp_path, str(tmp_path), precision)):
        assert len(result["whole"]) > 4 and max(result["whole"]) <= result["largest"]
        assert result["told"] == [0] * len(result["whole"])
        assert len(result["ours"]["rates"]) == 4
        for key in ("groups", "rates"):
            assert result["ours"][key] == result["theirs"][key]
        kept = 0
        for name, ours in result["ours"]["parameters"].items():
            theirs = result["theirs"]["parameters"][name]
            part = ours.pop("part")
            assert torch.equal(part, theirs.pop("part")), name
            assert ours.pop("id") - ours.pop("first_id") == theirs.pop("id") - theirs.pop("first_id"), name
            assert ours == theirs, name
            split = ".experts.w" in name
            assert ours["ranks"] == ([rank] if split else [0, 1])
            kept += part.numel()
            wanted = expected[name][4 * rank : 4 * rank + 4] if split else expected[name]
            assert torch.equal(result["weights"][name], wanted.to(part.dtype)), name
        assert kept < sum(map(torch.Tensor.numel, expected.values())) * 0.51
