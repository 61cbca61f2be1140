"""Plans against real engines of two ranks: bytes of states and of collectives, to the byte."""

import json
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import pytest
import torch
from torch import Tensor

from common.project import ROOT
from tests.support.planned import FEW_BYTES, measure
from tests.support.ranks import run_ranks
from tests.support.small import small_config
from training.config.run import RunConfig, load_config
from training.planning.cost import example_lengths
from training.planning.layout import Layout
from training.planning.states import states_of
from training.planning.times import checkpoint_of
from training.planning.traffic import traffic_of

RANKS = 2
COUNTERS = 64  # bytes of a checkpoint that count updates
KINDS = ("all_to_all", "all_reduce", "reduce_scatter", "all_gather")
STATES = ("weights", "master", "optimizer", "gradients", "backward_gradients", "buckets")
# Adafactor's factors, parameters that are not, an odd number of elements, vectors of experts
MODEL = {"d_model": 34, "d_ff": 50, "feed_forward_bias": "multiplicative", "num_layers": 2, "sparse_step": 2}
ZERO = {"reduce_bucket_size": 30_000}


def config_of(folder: Path, case: dict[str, Any]) -> RunConfig:
    """A case: ``stage``, ``ep``, sections, and options of the DeepSpeed file, which is written into ``folder``."""
    folder.mkdir(exist_ok=True)
    stage = case.get("stage", 1)
    config = small_config(
        folder,
        zero_stage=stage,
        model=MODEL | case.get("model", {}),
        data={"inputs_length": 32},
        optimizer=case.get("optimizer", {"min_dim_size_to_factor": 16}),
        parallel={"expert_parallel_size": case.get("ep", 1)} | case.get("parallel", {}),
        training={"global_batch_size": 4, "micro_batch_size": 2} | case.get("training", {}),
    )
    options = {"zero_optimization": {"stage": stage} | ZERO | case.get("zero", {})}
    Path(config.training.deepspeed_config).write_text(json.dumps(options))
    return config


def batches_of(config: RunConfig, accumulation: int) -> list[dict[str, Tensor]]:
    """Micro-batches without padding, the same on every rank."""
    inputs, targets = example_lengths(config.data)
    generator = torch.Generator().manual_seed(7)
    size, vocabulary = config.training.micro_batch_size, config.architecture().vocab_size
    return [
        {
            "input_ids": torch.randint(2, vocabulary, (size, inputs), generator=generator),
            "labels": torch.randint(2, vocabulary, (size, targets), generator=generator),
        }
        for _ in range(accumulation)
    ]


def steps_of(stage: int) -> int:
    """Steps until one is like all later ones: ZeRO 3 records the first micro-batch, and has persistent weights then."""
    return 3 if stage == 3 else 2


def measure_cases(folder: str, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """On every rank."""
    found = []
    for number, case in enumerate(cases):
        config = config_of(Path(folder) / f"{number}-{dist.get_rank()}", case)
        found.append(
            measure(config, batches_of(config, Layout.of(config, RANKS).accumulation), steps_of(case["stage"]))
        )
    return found


def planned(config: RunConfig, rank: int) -> dict[str, Any]:
    """What a plan says of it."""
    layout = Layout.of(config, RANKS)
    states, traffic = states_of(config, layout, rank), traffic_of(config, layout)
    collectives = {kind: traffic.bytes_of(kind) for kind in KINDS}  # type: ignore[arg-type]
    return {name: getattr(states, name) for name in STATES} | {
        "collectives": {kind: size for kind, size in collectives.items() if size}
    }


def check(tmp_path: Path, cases: list[dict[str, Any]]) -> None:
    """Compare every rank and case, and name all that differ."""
    wrong: list[tuple[Any, ...]] = []
    measured_by_rank = run_ranks(measure_cases, RANKS, tmp_path, str(tmp_path), cases)
    for number, (case, *of_ranks) in enumerate(zip(cases, *measured_by_rank, strict=True)):
        config = config_of(tmp_path / str(number), case)
        written = sum(of_rank.pop("checkpoint") for of_rank in of_ranks)
        size = checkpoint_of(config, Layout.of(config, RANKS), 1.0).bytes
        if not 0 <= written - size <= COUNTERS:
            wrong.append((case, "checkpoint", written, size))
    for rank, of_rank in enumerate(measured_by_rank):
        for number, (case, measured) in enumerate(zip(cases, of_rank, strict=True)):
            plan = planned(config_of(tmp_path / str(number), case), rank)
            assert measured.pop("few") < 50 * FEW_BYTES
            wrong += [(case, rank, key, measured[key], plan[key]) for key in plan if measured[key] != plan[key]]
            assert measured.keys() == plan.keys()
    assert not wrong, "\n".join(map(str, wrong))


ADAMW = {"name": "adamw", "unit_learning_rate": 1e-2, "weight_decay": 0.1}
SEVERAL = {"global_batch_size": 8}  # two micro-batches
FP32: list[dict[str, Any]] = [
    {"stage": 0, "ep": 2},
    {"stage": 1, "ep": 2, "optimizer": ADAMW},
    {"stage": 2, "training": SEVERAL, "zero": {"overlap_comm": True}},
    {"stage": 3, "ep": 2, "zero": {"stage3_param_persistence_threshold": 100}},
]


@pytest.mark.distributed
def test_bytes_of_engines(tmp_path: Path):
    check(tmp_path, FP32)


def grid(precision: str) -> list[dict[str, Any]]:
    """Stages, layouts and options of one precision."""
    factors: dict[str, Any] = {"min_dim_size_to_factor": 16}
    near: dict[str, Any] = {"stage3_param_persistence_threshold": 100, "stage3_max_reuse_distance": 20_000,
            "stage3_prefetch_bucket_size": 3_000, "sub_group_size": 30_000}  # fmt: skip
    cases: list[dict[str, Any]] = [
        {"stage": stage, "ep": ep, "training": training, "optimizer": optimizer}
        for stage in range(4)
        for ep in (1, 2)
        for training in ({}, SEVERAL)
        for optimizer in ((ADAMW,) if precision == "bf16" and training else (ADAMW, factors | {"beta1": 0.9}))
    ]
    cases += [
        {"stage": stage, "ep": 2, "training": {"trainable": trainable}}
        for stage in range(4)
        for trainable in ("moe", "dense_feed_forward", "attention", "non_moe")
    ]
    cases += [{"stage": stage, "model": {"num_experts": 0}} for stage in range(4)]
    cases += [{"stage": stage, "ep": 2, "training": SEVERAL | {"gradient_reduce_dtype": "bf16"}} for stage in range(4)]
    cases += [
        {"stage": stage, "ep": 2, "zero": {"overlap_comm": overlap}} for stage in (1, 2) for overlap in (False, True)
    ]
    cases += [{"stage": 3, "ep": ep, "zero": near, "training": SEVERAL} for ep in (1, 2)]
    cases += [{"stage": 1, "ep": 2, "training": {"activation_checkpointing": True}}]
    cases += [{"stage": 1, "ep": 2, "parallel": {"all_to_all_chunks": 2}}]
    cases += [{"stage": 1, "ep": 2, "model": {"gating": "flaxformer", "feed_forward": "relu", "sparse_step": 1}}]
    if precision == "bf16":
        cases += [
            {"stage": stage, "ep": 2, "training": SEVERAL | {"gradient_accumulate_dtype": "bf16"}}
            for stage in (1, 2, 3)
        ]
    for case in cases:
        case["training"] = case.get("training", {}) | {"precision": precision}
    if precision == "bf16":  # DeepSpeed has no fp32 sums without ZeRO
        for case in cases:
            if case["stage"] == 0:
                case["training"] |= {"gradient_accumulate_dtype": "bf16"}
    return cases


@pytest.mark.long
@pytest.mark.distributed
@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast", "bf16"])
def test_bytes_of_many_engines(tmp_path: Path, precision: str):
    """Fifty or more engines of each precision: three minutes."""
    check(tmp_path, grid(precision))


def base_config(folder: str, stage: int, size: int) -> RunConfig:
    """The model of ``configs/st_moe_base.yaml``, 0.7 x 10^9 parameters, on two ranks and short sequences."""
    options = Path(folder) / f"zero{stage}.json"
    return load_config(
        ROOT / "configs" / "st_moe_base.yaml",
        [
            f"parallel.expert_parallel_size={size}", f"training.deepspeed_config={options}", "training.precision=fp32",
            "training.micro_batch_size=1", "training.global_batch_size=2", "data.inputs_length=64",
        ],
    )  # fmt: skip


def measure_base(folder: str, stage: int, size: int) -> dict[str, Any]:
    """On every rank."""
    config = base_config(folder, stage, size)
    return measure(config, batches_of(config, 1), steps=steps_of(stage))


@pytest.mark.long
@pytest.mark.distributed
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bytes_of_st_moe_base(tmp_path: Path, stage: int, size: int):
    """10 to 15 GB of memory, and a minute."""
    options = {"zero_optimization": {"stage": stage, "reduce_bucket_size": 50_000_000}}
    (tmp_path / f"zero{stage}.json").write_text(json.dumps(options))
    config = base_config(str(tmp_path), stage, size)
    measured_by_rank = run_ranks(measure_base, RANKS, tmp_path, str(tmp_path), stage, size)
    written = sum(measured.pop("checkpoint") for measured in measured_by_rank)
    assert 0 <= written - checkpoint_of(config, Layout.of(config, RANKS), 1.0).bytes <= COUNTERS
    for rank, measured in enumerate(measured_by_rank):
        assert measured.pop("few") < 50 * FEW_BYTES
        assert measured == planned(config, rank)
