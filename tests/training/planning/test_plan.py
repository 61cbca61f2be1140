"""Plans worked by hand, and against the model's own modules."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common.project import ROOT
from model.config import StMoeConfig
from model.size import parameter_shapes
from model.st_moe import StMoeForConditionalGeneration
from tests.support.small import SMALL_MODEL, small_config
from training.config.errors import ConfigError
from training.config.run import RunConfig
from training.engine.parameters import model_parameter_specs, parameter_families
from training.planning.advice import advise
from training.planning.cards import CARDS, card_of_device, find_card
from training.planning.display.units import GIB
from training.planning.groups import Group, optimizer_groups, sub_groups
from training.planning.layout import Layout
from training.planning.plan import Assumptions, make_plan
from training.planning.states import States, states_of
from training.planning.step import parts_of
from training.planning.times import KINDS, rate_of
from training.planning.traffic import Kind, Message, seconds, traffic_of

H100 = find_card("h100-80gb")
LAYOUT = Layout(
    gpus=64, gpus_per_node=8, expert_parallel_size=8, zero_stage=1, micro_batch_size=4, accumulation=1, recompute=False,
    precision="bf16_autocast",
)  # fmt: skip


@pytest.mark.parametrize("model", [{}, {"feed_forward_bias": "additive", "rms_norm_scale": False}], ids=str)
def test_families_and_experts_are_those_of_the_modules(tmp_path: Path, model: dict[str, Any]):
    config = small_config(tmp_path, model=model)
    with torch.device("meta"):
        modules = StMoeForConditionalGeneration(StMoeConfig(**SMALL_MODEL | model))
    listed = parameter_shapes(config.architecture())
    specs = model_parameter_specs(modules)
    assert {p.name: p.family for p in listed} == parameter_families(modules)
    assert {p.name for p in listed if p.by_expert} == {
        spec.name for spec in specs.values() if spec.expert_axis and "hidden_bias" not in spec.name
    }
    layout = Layout.of(config, 1)
    held = [held for group in optimizer_groups(config, layout) for held in group.members]
    units = {one.shape.name: (one.units, one.unit_shape) for one in held}
    assert units == {spec.name: (spec.units, spec.unit_shape) for spec in specs.values()}


def test_a_partition_touches_the_parameters_that_it_cuts(tmp_path: Path):
    """Of three parameters with 10, 4 and 6 elements, four ranks hold 6 each, the last one 2 and padding."""
    held = optimizer_groups(small_config(tmp_path), Layout.of(small_config(tmp_path), 1))[0].members[0]
    members = tuple(dataclasses.replace(held, numel=numel, replicas=4) for numel in (10, 4, 6))
    group = Group(members, 4)
    assert (group.numel, group.padded, group.partition) == (20, 24, 6)
    assert [group.touched(index) for index in range(4)] == [10, 10 + 4, 4 + 6, 6]
    spans = group.spans(lambda one: one.numel == 4)
    assert [group.overlap(index, spans) for index in range(4)] == [0, 2, 2, 0]
    # Under ZeRO 3 each is cut: 3, 1 and 2 elements.
    assert [[one.numel for one in some] for some in sub_groups(group, 4)] == [[10, 4], [6]]
    assert [[one.numel for one in some] for some in sub_groups(group, 6)] == [[10, 4, 6]]


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_ranks_together_hold_every_weight_once_and_padding(tmp_path: Path, stage: int, size: int):
    config = small_config(tmp_path, zero_stage=stage, parallel={"expert_parallel_size": size},
                          training={"global_batch_size": 16, "micro_batch_size": 2})  # fmt: skip
    layout = Layout.of(config, 8)
    numel = sum(p.numel for p in parameter_shapes(config.architecture()))
    parameters = len(parameter_shapes(config.architecture()))
    # ZeRO 3 steps fp32 weights themselves.
    stepped = sum((one.weights if stage == 3 else one.master) for one in all_states(config, layout)) / 4
    assert numel <= stepped <= numel + 16 * parameters


def all_states(config: RunConfig, layout: Layout) -> list[States]:
    return [states_of(config, layout, rank) for rank in range(layout.gpus)]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_copy_of_the_weights_is_kept_where_it_must_be(tmp_path: Path, stage: int):
    """Under ZeRO 3 of bf16 weights alone, or with weights or the optimizer's state on the host."""
    config = small_config(tmp_path, zero_stage=stage, training={"global_batch_size": 16, "micro_batch_size": 2})
    layout = Layout.of(config, 8)
    partition = states_of(config, dataclasses.replace(layout, precision="bf16"), 0).master
    assert partition > 0
    for precision in ("fp32", "bf16_autocast"):
        of_precision = dataclasses.replace(layout, precision=precision)
        assert states_of(config, of_precision, 0).master == (0 if stage == 3 else partition)
    plain = states_of(config, layout, 0)
    Path(config.training.deepspeed_config).write_text(
        json.dumps({"zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu"}}})
    )
    moved = states_of(config, layout, 0)
    assert moved.host == plain.optimizer + 2 * partition  # the copy and the gradients
    if stage == 3:
        Path(config.training.deepspeed_config).write_text(
            json.dumps({"zero_optimization": {"stage": stage, "offload_param": {"device": "cpu"}}})
        )
        moved = states_of(config, layout, 0)
        assert (moved.host, moved.master) == (plain.weights, partition)


def test_more_gpus_and_a_higher_stage_never_need_more_on_each(tmp_path: Path):
    needed = []
    for stage in range(4):
        of_stage = []
        for gpus in (2, 4, 8):
            training = {"global_batch_size": 64, "micro_batch_size": 2}
            config = small_config(tmp_path, zero_stage=stage, training=training)
            states = states_of(config, Layout.of(config, gpus))
            of_stage.append(states.kept + states.gradients)
        assert of_stage == sorted(of_stage, reverse=True)
        needed.append(of_stage[-1])
    assert needed == sorted(needed, reverse=True)


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        # 8 ranks of a node: 7/8 of 8 GB at 450 GB/s
        (Message("all_to_all", "", 8, True, 8 * 10**9), 7 / 450),
        # 32 ranks in 4 nodes: 24/32 of 8 GB leave the node at 50 GB/s
        (Message("all_to_all", "", 32, True, 8 * 10**9), 6 / 50),
        # all 64 ranks: twice 63/64 of 6.4 GB, through 8 adapters of 50 GB/s
        (Message("all_reduce", "", 64, False, 64 * 10**8), 2 * 6.3 / 400),
        # the same experts on one rank of each of 8 nodes: one adapter
        (Message("all_gather", "", 8, True, 8 * 10**9), 7 / 50),
    ],
    ids=str,
)
def test_times_of_links(message: Message, wanted: float):
    assert seconds(message, LAYOUT, H100) == pytest.approx(wanted)


def test_bytes_of_an_all_to_all_by_hand(tmp_path: Path):
    """Two sparse layers; 4 experts; 2 sequences of 32 and 9 positions: groups of 64 and 18 tokens, 20 and 5 slots."""
    config = small_config(tmp_path, data={"inputs_length": 32}, parallel={"expert_parallel_size": 2},
                          training={"global_batch_size": 8, "micro_batch_size": 2})  # fmt: skip
    traffic = traffic_of(config, Layout.of(config, 2))
    rows = 4 * (20 + 5)
    # There and back, forward and backward, in two micro-batches; rows of 32 numbers of 4 bytes.
    assert traffic.bytes_of("all_to_all") == 4 * 2 * rows * 32 * 4
    recomputed = dataclasses.replace(Layout.of(config, 2), recompute=True)
    assert traffic_of(config, recomputed).bytes_of("all_to_all") == 6 * 2 * rows * 32 * 4
    assert not traffic_of(config, dataclasses.replace(LAYOUT, gpus=1, expert_parallel_size=1)).messages


def test_advice_names_the_section_of_the_paper(tmp_path: Path):
    model = {"num_experts": 128, "top_n": 1, "train_capacity_factor": 2.0}
    config = small_config(tmp_path, model=model, parallel={"expert_parallel_size": 64},
                          training={"global_batch_size": 256})  # fmt: skip
    plan = make_plan(config, Layout.of(config, 64), H100)
    advice = "\n".join(plan.warnings)
    for words in ("top_n = 1: Zoph et al. 2022, section 5.2", "train_capacity_factor = 2.0", "section 5.1",
                  "expert_parallel_size = 64 leaves a node of 8 GPUs", "bound by kernel launches",
                  "fewer GPUs with a larger training.micro_batch_size, or a larger"):  # fmt: skip
        assert words in advice
    quiet = dataclasses.replace(plan.times, launches=0.0, communication=0.0)
    config = small_config(tmp_path, parallel={"expert_parallel_size": 4}, training={"micro_batch_size": 2})
    assert not list(advise(config, Layout.of(config, 4), H100, quiet))
    config = small_config(tmp_path, model={"num_experts": 0})
    assert not list(advise(config, Layout.of(config, 1), H100, quiet))


def test_advice_on_what_binds_a_step(tmp_path: Path):
    config = small_config(tmp_path, model={"num_experts": 0})
    layout = Layout.of(config, 1)
    times = make_plan(config, layout, H100).times
    bound = dataclasses.replace(times, compute=0.2, launches=0.5, communication=0.0)
    (line,) = advise(config, layout, H100, bound)
    assert "the host needs 0.50 s for them, compute takes 0.20 s; a larger training.micro_batch_size" in line
    links = times.links | {"all_reduce": 0.6}
    bound = dataclasses.replace(times, compute=0.5, launches=0.2, communication=0.55, links=links)
    (line,) = advise(config, layout, H100, bound)
    assert "bound by communication: GPUs wait for it 0.55 s, links are busy for 0.60 s with all-reduce" in line


def test_offload_is_not_in_the_times(tmp_path: Path):
    config = small_config(
        tmp_path, model={"num_experts": 0}, training={"deepspeed_config": str(ROOT / "ds_configs" / "offload.json")}
    )
    layout = Layout.of(config, 1)
    quiet = dataclasses.replace(make_plan(config, layout, H100).times, launches=0.0, communication=0.0)
    (line,) = advise(config, layout, H100, quiet)
    assert "offload.json offloads to the host: times lack its transfers" in line


def links(**seconds: float) -> dict[Kind, float]:
    return {kind: seconds.get(kind, 0.0) for kind in KINDS}


def test_the_parts_of_a_step_by_hand(tmp_path: Path):
    """Eight blocks, two micro-batches on two GPUs."""
    config = small_config(tmp_path, training={"micro_batch_size": 2, "activation_checkpointing": True})
    layout = Layout.of(config, 2)
    parts = parts_of(config, layout, 0.001, links(all_reduce=0.3, all_gather=0.2, all_to_all=0.1))
    assert parts.launches == pytest.approx(2 * 8 * (2 * 0.103 + 0.207) / 48)
    # ZeRO 1 hides nothing.
    assert parts.communication == pytest.approx(0.6)
    numel = sum(p.numel for p in parameter_shapes(config.architecture()))
    assert parts.optimizer == pytest.approx(0.045 / 1.198e9 * numel / 2, rel=1e-3)
    assert parts.together == parts.launches + parts.communication + parts.optimizer
    chunks = dataclasses.replace(layout, all_to_all_chunks=2)
    assert parts_of(config, chunks, 5.0, links(all_to_all=0.1)).together == pytest.approx(5.05 + parts.optimizer)
    # ZeRO 3 hides gathers and reductions behind the passes.
    zero3 = dataclasses.replace(layout, zero_stage=3)
    hidden = parts_of(config, zero3, 5.0, links(reduce_scatter=3.0, all_gather=4.0, all_to_all=0.1))
    assert hidden.communication == pytest.approx(3.0 + 4.0 - 5.0 + 0.1)


def test_time_and_gpu_hours_follow_from_flops(tmp_path: Path):
    config = small_config(tmp_path, training={"activation_checkpointing": True, "steps": 360, "precision": "bf16"})
    plan = make_plan(config, Layout.of(config, 2), H100, Assumptions(rate=0.5, reserved=GIB))
    executed = plan.flops.executed_of_step
    assert executed > plan.flops.training_of_step
    assert plan.times.compute == pytest.approx(executed / (2 * 0.5 * 989.4e12))
    assert plan.times.step > plan.times.launches > plan.times.compute
    assert plan.times.run == pytest.approx(360 * plan.times.step)
    assert plan.times.gpu_hours == pytest.approx(plan.times.step * 360 * 2 / 3600)
    assert plan.times.mfu <= 0.5
    # A run that recomputes, and measures an MFU, computes at a higher rate.
    assert rate_of(config, 0.3) == pytest.approx(0.3 * executed / plan.flops.training_of_step)
    assert plan.needed == plan.peak.total + GIB


def test_a_card_is_found_by_its_name_and_by_that_of_the_device():
    assert find_card("A100-40GB").memory == 40 * GIB
    assert card_of_device("NVIDIA H100 80GB HBM3") == H100
    assert card_of_device("NVIDIA RTX 9999") is None
    assert len({card.name for card in CARDS}) == len(CARDS)
    with pytest.raises(ConfigError, match="did you mean a100-80gb or a100-40gb"):
        find_card("a100")
    with pytest.raises(ConfigError, match="there are a10, a100-40gb"):
        find_card("9999")
