"""In which type gradients are summed over micro-batches and over ranks, as the engine itself does it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed.comm.comm
import pytest
from deepspeed.runtime import torch_autocast
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

from tests.support.ranks import run_ranks
from tests.support.small import global_batch, small_config
from training.engine.build import build_engine
from training.engine.parameters import parameter_families
from training.engine.step import update

FAMILIES = {"embedding", "attention", "feed_forward", "experts", "router", "norm", "relative_bias", "head"}
PRODUCTS = {"attention", "feed_forward", "experts", "head"}  # families of matrices that go into products in bf16
REDUCTIONS = ("all_reduce", "reduce", "reduce_scatter_tensor")
SCALARS = 64  # norms, counts and loss terms that are summed over ranks have fewer elements; no tested gradient has


@contextmanager
def reductions() -> Iterator[set[str]]:
    """The types of the tensors, other than a few scalars, that DeepSpeed sums over ranks."""
    seen: set[str] = set()
    backend = deepspeed.comm.comm.cdb

    def noting(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            tensor = [*args, *kwargs.values()][0]
            if tensor.numel() > SCALARS:
                seen.add(str(tensor.dtype))
            return original(*args, **kwargs)

        return call

    for name in REDUCTIONS:
        setattr(backend, name, noting(getattr(backend, name)))
    try:
        yield seen
    finally:
        for name in REDUCTIONS:
            delattr(backend, name)  # the instance's, so that the class's is seen again


def sums(engine: Any) -> list[Tensor]:
    """The tensors in which the wrapper keeps the sum of the micro-batches so far."""
    wrapper = engine.optimizer
    if isinstance(wrapper, BF16_Optimizer):
        return [gradient for group in wrapper.fp32_groups_gradients for gradient in group]
    if isinstance(wrapper, DeepSpeedZeroOptimizer_Stage3):
        return list(wrapper._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition.values())
    if isinstance(wrapper, DeepSpeedZeroOptimizer) and wrapper.partition_gradients:
        kept = wrapper.all_grad_tensors or wrapper.averaged_gradients  # the latter if weights have another type
        return [gradient for group in kept.values() for gradient in group]
    return [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]


def dtypes_of(folder: str, stage: int, training: dict[str, str]) -> dict[str, Any]:
    """Types by family that the wrapper reduces in, of all reductions of an update, and of the sums half-way."""
    config = small_config(
        Path(folder),
        model={"num_layers": 2, "sparse_step": 2},
        zero_stage=stage,
        parallel={"expert_parallel_size": 2},
        training=training | {"global_batch_size": 8, "micro_batch_size": 2},
    )
    torch_autocast.TORCH_AUTOCAST_INITIALIZED = False  # DeepSpeed's, which outlives an engine
    engine = build_engine(config, 2, "cpu")
    halfway: set[str] = set()
    step = engine.step

    def stepping() -> None:
        if not engine.is_gradient_accumulation_boundary():
            halfway.update(str(tensor.dtype) for tensor in sums(engine))
        step()

    engine.step = stepping
    rank = deepspeed.comm.get_rank()
    micro = [{k: v[i : i + 2] for k, v in global_batch(0, 8).items()} for i in range(2 * rank, 8, 4)]
    with reductions() as reduced:
        update(engine, micro, 0, 0, 0, rank)
    zero = isinstance(engine.optimizer, DeepSpeedZeroOptimizer | DeepSpeedZeroOptimizer_Stage3)
    named = dict(engine.module.named_parameters())
    families: dict[str, set[str]] = {}
    for name, family in parameter_families(engine.module).items():
        families.setdefault(family, set()).add(
            str(engine.optimizer.get_param_comm_dtype(named[name]) if zero else engine.communication_data_type)
        )
    return {
        "families": {family: sorted(dtypes) for family, dtypes in families.items()},
        "reduced": sorted(reduced),
        "sums": sorted(halfway),
    }


def all_dtypes(folder: str, cases: list[tuple[int, dict[str, str]]]) -> list[dict[str, Any]]:
    return [dtypes_of(folder, stage, training) for stage, training in cases]


@pytest.mark.distributed
def test_gradients_are_summed_in_fp32_unless_the_config_says_bf16(tmp_path: Path):
    full, low = "torch.float32", "torch.bfloat16"
    by_default = [
        (stage, {"precision": precision}) for precision in ("fp32", "bf16_autocast", "bf16") for stage in (1, 2, 3)
    ]
    by_default += [(0, {"precision": "fp32"}), (0, {"precision": "bf16_autocast"})]
    reduce, accumulate = {"gradient_reduce_dtype": "bf16"}, {"gradient_accumulate_dtype": "bf16"}
    cases = [
        *by_default,
        *((stage, {"precision": "bf16_autocast", **reduce}) for stage in (1, 3)),
        *((stage, {"precision": "bf16", **reduce, **accumulate}) for stage in (0, 1, 2)),
    ]
    for rank in run_ranks(all_dtypes, 2, tmp_path, str(tmp_path), cases):
        for (stage, training), found in zip(cases, rank, strict=True):
            assert found["families"].keys() == FAMILIES
            case = (stage, training, found)
            if "gradient_reduce_dtype" not in training:
                assert all(dtypes == [full] for dtypes in found["families"].values()), case
                assert found["reduced"] == [full], case
            elif training["precision"] == "bf16_autocast":
                for family, dtypes in found["families"].items():
                    assert dtypes == [low if family in PRODUCTS else full], case
                assert found["reduced"] == [low, full], case
            else:
                assert all(dtypes == [low] for dtypes in found["families"].values()), case
                assert found["reduced"] == [low], case
            assert found["sums"] == [low if "gradient_accumulate_dtype" in training else full], case
