"""Training of a subset of the parameters: frozen ones stay as they are, cost nothing, and are in every checkpoint."""

from pathlib import Path
from typing import Any, NamedTuple

import deepspeed
import deepspeed.comm as dist
import pytest
import torch
from torch import Tensor

from optim.adafactor import Adafactor
from tests.support.ranks import run_ranks
from tests.support.small import global_batch, small_config
from training.checkpoint.capture import Moment
from training.checkpoint.load import load_checkpoint
from training.checkpoint.resume import find_checkpoint
from training.checkpoint.saver import Saver
from training.config.run import RunConfig
from training.config.training import TRAINABLE
from training.engine.build import build_engine
from training.engine.parameters import model_parameter_specs, parameter_families
from training.engine.step import update
from training.export.weights import read_model


class Case(NamedTuple):
    """What is trained, and where; ``later`` is the ZeRO stage and expert-parallel size at which the run resumes."""

    trainable: str
    zero: int
    ep: int
    optimizer: str = "adafactor"
    precision: str = "fp32"
    later: tuple[int, int] = (3, 1)


def _config(folder: str, case: Case, zero: int, ep: int) -> RunConfig:
    optimizer = {"name": case.optimizer} | ({"min_dim_size_to_factor": 16} if case.optimizer == "adafactor" else {})
    return small_config(
        Path(folder), model={"second_policy": "all"}, zero_stage=zero, optimizer=optimizer,
        parallel={"expert_parallel_size": ep},
        training={"name": "-".join(map(str, case[:5])), "trainable": case.trainable, "precision": case.precision},
    )  # fmt: skip


def _train(engine: Any, steps: range) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    for step in steps:
        micro = [{k: v[i : i + 4] for k, v in global_batch(step, 8).items()} for i in range(4 * rank, 8, 4 * world)]
        update(engine, micro, 0, 0, step, rank)


def _weights(engine: Any) -> dict[str, Tensor]:
    """The network's own weights as it computes with them, of this rank's experts."""
    found = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=engine.zero_optimization_stage() == 3):
            found[name] = parameter.detach().float().clone()
    return found


def _state_bytes(optimizer: Any) -> int:
    """Bytes of this rank's optimizer state."""
    if isinstance(optimizer, Adafactor):
        return optimizer.state_nbytes
    return sum(v.nbytes for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v))


def _differing(engine: Any, whole: Any) -> list[str]:
    """Parameters of the engine that are not those of a whole model."""
    axes = {spec.name: spec.expert_axis for spec in model_parameter_specs(engine.module).values()}
    parts = {n: w[axis.held.start : axis.held.stop] if (axis := axes[n]) else w for n, w in whole.named_parameters()}
    return [name for name, weights in _weights(engine).items() if not torch.equal(weights, parts[name])]


def _run(folder: str, cases: list[Case], steps: int) -> list[dict[str, Any]]:
    results = []
    for case in cases:
        config = _config(folder, case, case.zero, case.ep)
        engine = build_engine(config, dist.get_world_size(), "cpu")
        families, before = parameter_families(engine.module), _weights(engine)
        _train(engine, range(steps))
        after = _weights(engine)
        moved = {name: not torch.equal(before[name], after[name]) for name in before}
        rank = str(dist.get_rank())
        data = {"identity": {}, "next_example": 0, "streams": {rank: rank}}
        saver = Saver(config, "cpu")
        saver.start(engine, Moment(steps, 7, data, guard={}, evaluated=None, metrics_bytes=0, code={}))
        saved = saver.wait()
        assert saved is not None
        assert saved.error is None
        whole = read_model(saved.folder, config.st_moe_config())
        not_saved = _differing(engine, whole)
        later = _config(folder, case, *case.later)
        other = build_engine(later, dist.get_world_size(), "cpu")
        _train(other, range(100, 101))  # what it has must be replaced
        load_checkpoint(other, find_checkpoint(later, dist.get_world_size(), case.later[0]))
        not_loaded = _differing(other, whole)
        _train(other, range(steps, steps + 1))  # and it trains on
        results.append(
            {
                "moved": sorted({families[name] for name in moved if moved[name]}),
                "still": sorted({families[name] for name in moved if not moved[name]}),
                "gradients": [
                    name for name, p in engine.module.named_parameters() if not p.requires_grad and p.grad is not None
                ],
                "bytes": _state_bytes(engine.basic_optimizer),
                # bf16 weights of the network are rounded master weights
                "not saved": [] if case.precision == "bf16" else not_saved,
                "not loaded": [] if case.precision == "bf16" else not_loaded,
            }
        )
    return results


def _check(tmp_path: Path, cases: list[Case], steps: int) -> list[str]:
    table = []
    for *found, case in zip(*run_ranks(_run, 2, tmp_path, str(tmp_path), cases, steps), cases, strict=True):
        for result in found:
            trained = TRAINABLE[case.trainable]
            assert set(result["moved"]) == trained, (case, result)
            assert not set(result["still"]) & trained, (case, result)
            assert not (result["gradients"] or result["not saved"] or result["not loaded"]), (case, result)
        numbers = "  ".join(f"{result['bytes']:>9,}" for result in found)
        table.append(
            f"{case.trainable:<18} {case.optimizer:<9} {case.precision} ZeRO {case.zero} EP {case.ep}: {numbers} bytes "
            "of optimizer state by rank"
        )
    return table


@pytest.mark.distributed
def test_frozen_families_stay_as_they_are_and_are_saved(tmp_path: Path):
    cases = [
        Case("dense_feed_forward", 1, 2),
        Case("moe", 2, 2, later=(1, 1)),
        Case("attention", 3, 2, "adamw", later=(2, 2)),
        Case("non_moe", 1, 2, "adamw", later=(0, 2)),
    ]
    _check(tmp_path, cases, steps=2)


@pytest.mark.distributed
@pytest.mark.long  # every family under every stage, expert-parallel size and optimizer
@pytest.mark.parametrize("trainable", list(TRAINABLE))
def test_every_family_under_every_stage(trainable: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    optimizers = [("adafactor", "fp32"), ("adamw", "fp32"), ("adafactor", "bf16")]
    places = [(zero, ep) for zero in (0, 1, 2, 3) for ep in (1, 2)]
    cases = [Case(trainable, *place, *kind, later=(3 - place[0], 2)) for place in places for kind in optimizers]
    table = _check(tmp_path, cases, steps=20)
    with capsys.disabled():
        print("\n" + "\n".join(table))
