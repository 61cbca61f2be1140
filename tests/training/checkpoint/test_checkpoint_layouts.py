"""A checkpoint of any parallel layout, loaded at any other: the same tensors bit for bit, then the same training."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import deepspeed
import deepspeed.comm as dist
import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor
from torch.optim import AdamW

from optim.adafactor import Adafactor
from tests.support.optimizer import joined, whole_state
from tests.support.ranks import run_ranks
from tests.support.small import TWO_BLOCKS, global_batch, small_config
from training.checkpoint.capture import Moment
from training.checkpoint.load import load_checkpoint
from training.checkpoint.resume import find_checkpoint
from training.checkpoint.saver import Saver
from training.config.run import RunConfig
from training.engine.build import build_engine
from training.engine.parameters import model_parameter_specs
from training.engine.step import update

SAVED = 3  # steps before the checkpoint


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"name": "adamw", "learning_rate": 3e-3, "unit_learning_rate": 1e-2},
    "adafactor": {"name": "adafactor", "min_dim_size_to_factor": 16},
    "momentum": {"name": "adafactor", "min_dim_size_to_factor": 40, "beta1": 0.9},
}


class Place(NamedTuple):
    """A parallel layout, and what else may be at it."""

    world: int
    zero: int
    ep: int
    precision: str = "fp32"
    optimizer: str = "adamw"


ALL = [(2, zero, ep) for zero in range(4) for ep in (1, 2)] + [(1, zero, 1) for zero in range(4)]


def _config(folder: str, place: Place, source: Place) -> RunConfig:
    """A run that resumes from the checkpoint of ``source``. Without clipping, which is wrong under ZeRO 0 and EP 2."""
    return small_config(
        Path(folder),
        model=TWO_BLOCKS | {"second_policy": "all"},
        zero_stage=place.zero,
        optimizer=OPTIMIZERS[place.optimizer] | {"gradient_clipping": 0.0, "weight_decay": 0.1},
        parallel={"expert_parallel_size": place.ep},
        training={"name": "-".join(map(str, source)), "precision": place.precision},
    )


def _train(engine: Any, config: RunConfig, steps: range) -> list[float]:
    """Losses of global batches of 8 sequences, whatever the world size."""
    rank, world = dist.get_rank(), dist.get_world_size()
    losses = []
    for step in steps:
        micro = [{k: v[i : i + 4] for k, v in global_batch(step, 8).items()} for i in range(4 * rank, 8, 4 * world)]
        losses.append(update(engine, micro, 0, 0, step, rank)[0].reduce(config.st_moe_config())["loss"])
    return losses


def _named_tensors(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """Whole weights and AdamW's moments, an expert each, as DeepSpeed's own debugging functions give them."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    masters = {p: p for p in engine.module.parameters()}
    if hasattr(optimizer, "fp32_groups"):  # bf16 without ZeRO
        for low, high in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            masters |= dict(zip(low, high, strict=True))
    if stage in (1, 2):
        optimizer._hp_optimizer_states_linked = False  # DeepSpeed links them after the first group's first step
        optimizer._lazy_init_hp_params_optimizer_state()
    specs = model_parameter_specs(engine.module)
    for name, parameter in engine.module.named_parameters():
        tensors = {"weight": safe_get_full_fp32_param(parameter) if stage else masters[parameter]}
        with deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3):
            assert torch.equal(parameter, tensors["weight"].to(parameter.dtype)), name
        for state in ("exp_avg", "exp_avg_sq") if isinstance(engine.basic_optimizer, AdamW) else ():
            tensors[state] = (
                safe_get_full_optimizer_state(parameter, state)
                if stage
                else engine.basic_optimizer.state[masters[parameter]][state]
            )
        axis = specs[parameter].expert_axis
        for key, tensor in tensors.items():
            if axis is None or not axis.split:
                yield f"{name}/{key}", tensor
            else:
                yield from ((f"{name}/{axis.held[i]}/{key}", expert) for i, expert in enumerate(tensor))


def _digests(engine: Any) -> dict[str, str]:
    found = {name: _digest(tensor) for name, tensor in _named_tensors(engine)}
    optimizer = engine.basic_optimizer
    if isinstance(optimizer, AdamW):
        found["step"] = str({float(state["step"]) for state in optimizer.state.values()})
    rates = [group["lr"] for group in optimizer.param_groups]
    return found | {"rates": str(rates), "counters": str((engine.global_steps, engine.skipped_steps))}


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def _state_and_future(engine: Any, config: RunConfig, steps: int) -> dict[str, Any]:
    named = engine.basic_optimizer.named_state() if isinstance(engine.basic_optimizer, Adafactor) else {}
    named = {name: tensor.clone() for name, tensor in named.items()}
    digests, losses = _digests(engine), _train(engine, config, range(SAVED, SAVED + steps))
    return {"digests": digests, "named": named, "losses": losses}


def _save(folder: str, sources: list[Place], steps: int) -> dict[str, Any]:
    """Train, save, train on: tensors at the checkpoint and losses after it, by source."""
    results = {}
    for source in sources:
        config = _config(folder, source, source)
        engine = build_engine(config, source.world, "cpu")
        _train(engine, config, range(SAVED))
        rank = str(dist.get_rank())
        state = {"identity": {}, "next_example": 8 * SAVED, "streams": {rank: rank}}
        moment = Moment(SAVED, 7, state, guard={}, evaluated=None, metrics_bytes=0, code={})
        saver = Saver(config, "cpu")
        saver.start(engine, moment)
        saved = saver.wait()
        assert saved is not None
        assert saved.error is None
        results[str(source)] = _state_and_future(engine, config, steps)
    return results


def _load(folder: str, pairs: list[tuple[Place, Place]], steps: int) -> dict[str, Any]:
    """The same for engines that load ``source``'s checkpoint at ``target``, by pair."""
    results: dict[str, Any] = {}
    for source, target in pairs:
        config = _config(folder, target, source)
        rolls_back = len(results) % 2 == 0  # otherwise a new process resumes, and all weights are NaN
        engine = build_engine(config, target.world, "cpu", initialize=rolls_back)
        if rolls_back:
            _train(engine, config, range(100, 101))  # the load must replace all that there is
        load_checkpoint(engine, find_checkpoint(config, target.world, target.zero))
        results[f"{source}{target}"] = _state_and_future(engine, config, steps)
    return results


def _run(
    folder: str, sources: list[Place], pairs: list[tuple[Place, Place]], steps: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    return _save(folder, sources, steps), _load(folder, pairs, steps)


def _check(folder: Path, pairs: list[tuple[Place, Place]], steps: int) -> list[str]:
    """Run all pairs, in three groups of processes; gives a table."""
    results: dict[str, Any] = {}
    for world, saves, loads in ((2, {2}, {2}), (1, {1}, {1, 2}), (2, set[int](), {1})):
        sources = sorted({source for source, _ in pairs if source.world == world and world in saves})
        mine = [(source, target) for source, target in pairs if target.world == world and source.world in loads]
        for ranks in zip(*run_ranks(_run, world, folder, str(folder), sources, mine, steps), strict=True):
            results |= _merge(list(ranks))
    table = []
    for source, target in pairs:
        expected, found = results[str(source)], results[f"{source}{target}"]
        assert found["digests"] == expected["digests"], (source, target)
        if "bf16" in source.precision + target.precision:  # another arithmetic, or bf16 sums over ranks
            assert found["losses"] == pytest.approx(expected["losses"], rel=2e-2)
            continue
        difference = max(abs(a - b) for a, b in zip(found["losses"], expected["losses"], strict=True))
        table.append(f"{source} {target} {difference:.1e}")
        assert difference == 0 if source == target else difference <= 1e-5, table[-1]
    return table


def _merge(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Digests of all ranks' experts together; dense ones must agree."""
    merged = ranks[0]
    for key, other in [(key, other) for rank in ranks[1:] for key, other in rank.items()]:
        mine = merged[key]["digests"]
        assert all(mine.get(name, digest) == digest for name, digest in other["digests"].items()), key
        mine |= other["digests"]
        assert merged[key]["losses"] == other["losses"]
    for key, result in merged.items():
        adafactor = whole_state(joined([rank[key]["named"] for rank in ranks]))
        result["digests"] |= {name: _digest(tensor) for name, tensor in adafactor.items()}
    return merged


@pytest.mark.distributed
def test_checkpoints_load_at_other_layouts_and_precisions(tmp_path: Path):
    a, b, low = Place(2, 1, 2), Place(1, 3, 1), Place(2, 3, 1, "bf16")
    pairs = [(a, target) for target in (a, b, Place(2, 3, 2), Place(2, 2, 1), Place(1, 0, 1), low)]
    pairs += [(b, Place(2, 0, 2)), (b, Place(2, 0, 1, "bf16")), (low, Place(2, 1, 2, "bf16"))]
    _check(tmp_path, pairs, steps=2)


@pytest.mark.distributed
def test_checkpoints_of_adafactor_load_at_other_layouts(tmp_path: Path):
    pairs: list[tuple[Place, Place]] = []
    for name in ("adafactor", "momentum"):
        c, d = (Place(*place, optimizer=name) for place in ((2, 2, 2), (1, 3, 1)))
        pairs += [(c, d), (c, Place(2, 1, 1, optimizer=name))]
    _check(tmp_path, [*pairs, (d, Place(2, 3, 2, optimizer="momentum"))], steps=2)


@pytest.mark.distributed
@pytest.mark.long  # 144 pairs of layouts for each optimizer; the tests above are a choice of them
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_checkpoints_of_every_layout_load_at_every_layout(
    optimizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    places = [Place(*place, optimizer=optimizer) for place in ALL]
    table = _check(tmp_path, [(source, target) for source in places for target in places], steps=10)
    with capsys.disabled():
        print("\n" + "\n".join(table))
