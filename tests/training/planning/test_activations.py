"""Planned activations against those of real micro-batches: of two ranks, with the CPU's code."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.micro_batch import measure
from tests.support.ranks import run_ranks
from tests.support.small import TWO_BLOCKS, small_config
from training.config.run import RunConfig, load_config
from training.planning.activations import activations_of
from training.planning.layout import Layout
from training.planning.states import states_of

SMALL = TWO_BLOCKS | {"d_model": 64, "d_ff": 128}
# Name → sections. Together: every stage, both ways of spreading experts, with and without recomputation.
CASES: dict[str, dict[str, Any]] = {
    "ZeRO 1": {},
    "ZeRO 2, EP 2, recomputed": {"zero_stage": 2, "ep": 2, "training": {"activation_checkpointing": True}},
    "ZeRO 3, EP 2": {"zero_stage": 3, "ep": 2, "zero": {"stage3_param_persistence_threshold": 0}},
    "ReLU, top-1, dropout, chunks": {
        "ep": 2, "chunks": 2,
        "model": {"feed_forward": "relu", "top_n": 1, "dropout_rate": 0.1, "expert_dropout_rate": 0.2},
    },
    "bf16_autocast, dropless": {
        "ep": 2, "model": {"capacity": "dropless", "d_model": 32}, "training": {"precision": "bf16_autocast"},
    },
}  # fmt: skip


def case_config(tmp_path: Path, case: dict[str, Any]) -> RunConfig:
    parallel = {"expert_parallel_size": case.get("ep", 1), "all_to_all_chunks": case.get("chunks", 1)}
    config = small_config(
        tmp_path,
        model=SMALL | case.get("model", {}),
        zero_stage=case.get("zero_stage", 1),
        data={"inputs_length": 64},
        parallel=parallel,
        training={"global_batch_size": 16} | case.get("training", {}),
    )
    if "zero" in case:
        options = {"zero_optimization": {"stage": case["zero_stage"]} | case["zero"]}
        Path(config.training.deepspeed_config).write_text(json.dumps(options))
    return config


def compare(config: RunConfig, measured: dict[str, int]) -> dict[str, Any]:
    """Return predicted and measured bytes, and their ratios."""
    planned = activations_of(config, Layout.of(config, 2, 2), device="cpu")
    return {
        "saved": planned.saved, "measured saved": measured["saved"], "saved ratio": planned.saved / measured["saved"],
        "peak": planned.peak, "measured peak": measured["activation"],
        "peak ratio": planned.peak / measured["activation"], "at": planned.highest.where,
    }  # fmt: skip


def _measure_cases(folder: Path) -> dict[str, dict[str, int]]:
    return {name: measure(case_config(folder, case), 2) for name, case in CASES.items()}


@pytest.mark.distributed
def test_two_ranks_take_the_memory_that_is_planned(tmp_path: Path):
    for measured in run_ranks(_measure_cases, 2, tmp_path, tmp_path):
        for name, case in CASES.items():
            config = case_config(tmp_path, case)
            found = compare(config, measured[name])
            near = 0.05 if "dropless" in name else 0.01  # where the rows of a rank depend on the tokens
            assert found["saved ratio"] == pytest.approx(1, abs=near), (name, found)
            assert found["peak ratio"] == pytest.approx(1, abs=0.1), (name, found)
            live = states_of(config, Layout.of(config, 2, 2)).live
            assert measured[name]["gathered"] == pytest.approx(live, rel=0.05), name


def grid_config(tmp_path: Path, model: str, stage: int, ep: int, recompute: bool) -> RunConfig:
    file = tmp_path / f"zero{stage}.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    size = 8 if model == "tiny" else 1
    name, _, blocks = model.partition(" ")
    layers = [f"model.num_layers={blocks.split()[1]}"] if blocks else []
    overrides = [
        f"parallel.expert_parallel_size={ep}", f"training.activation_checkpointing={str(recompute).lower()}",
        f"training.deepspeed_config={file}", "training.precision=fp32", f"training.micro_batch_size={size}",
        f"training.global_batch_size={4 * size}", f"training.eval_examples={4 * size}",
        f"training.output_dir={tmp_path}", *layers,
    ]  # fmt: skip
    return load_config(f"configs/{name}.yaml", overrides)


# Long: 36 engines, a third of them of 0.7 billion parameters, which take up to 9 GB per rank and minutes each. The short
# form is above. ``-s`` prints the table.
@pytest.mark.long
@pytest.mark.distributed
@pytest.mark.parametrize("model", ["tiny", "st_moe_base of 4 blocks", "st_moe_base"])
@pytest.mark.parametrize(("stage", "ep", "recompute"), itertools.product((1, 2, 3), (1, 2), (False, True)))
def test_every_layout_takes_the_memory_that_is_planned(
    tmp_path: Path, model: str, stage: int, ep: int, recompute: bool
):
    config = grid_config(tmp_path, model, stage, ep, recompute)
    (measured, _) = run_ranks(measure, 2, tmp_path, config, 2)
    found = compare(config, measured)
    again = ", recomputed" if recompute else ""
    print(
        f"\n{model}, ZeRO {stage}, EP {ep}{again}: saved {found['saved']:,} of {found['measured saved']:,}, "
        f"{found['saved ratio']:.3f}; peak {found['peak']:,} of {found['measured peak']:,}, {found['peak ratio']:.3f}"
    )
    assert found["saved ratio"] == pytest.approx(1, abs=0.02)
    assert found["peak ratio"] == pytest.approx(1, abs=0.1)


def test_activations_grow_with_the_micro_batch_and_shrink_with_recomputation(tmp_path: Path):
    for precision, device in itertools.product(("fp32", "bf16", "bf16_autocast"), ("gpu", "cpu")):
        peaks = [
            activations_of(config, Layout.of(config, 2), device=device)  # type: ignore[arg-type]
            for config in (
                case_config(tmp_path, {"training": {"precision": precision, **changes}})
                for changes in ({}, {"micro_batch_size": 8}, {"activation_checkpointing": True})
            )
        ]
        one, two, recomputed = (found.peak for found in peaks)
        assert one < two <= 2 * one
        assert recomputed < one
        assert peaks[2].saved < peaks[2].peak
        assert all(value > 0 for found in peaks for value in found.parts.values())


def test_experts_of_other_ranks_change_the_rows_of_none(tmp_path: Path):
    plans = [activations_of(c, Layout.of(c, 4)) for c in (case_config(tmp_path, {"ep": ep}) for ep in (1, 2, 4))]
    assert len({plan.parts["expert_rows"] for plan in plans}) == 1
    # all-to-alls hold rows twice
    assert plans[0].peak <= plans[1].peak
