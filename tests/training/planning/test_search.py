"""The search for layouts: what it lists fits and is accepted, what it refuses is refused for the reason it names."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.project import ROOT
from tests.support.small import SMALL_MODEL
from training.config.checks import check_all_to_all, check_layout
from training.config.errors import ConfigError
from training.config.overrides import override
from training.config.run import SECTIONS, RunConfig, load_config, validate
from training.planning.cards import Card, find_card
from training.planning.display.table import verdict
from training.planning.display.units import memory
from training.planning.layout import Layout, checked_layout
from training.planning.plan import Assumptions, Plan, make_plan
from training.planning.search.candidates import candidates, overrides
from training.planning.search.find import CLOSE, Search, search
from training.planning.search.reasons import spread
from training.planning.search.table import nothing_fits, text

MIB = 2**20
NOTHING_RESERVED = Assumptions(reserved=0)
H100 = find_card("h100-80gb")


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def configured(**sections: dict[str, Any]) -> RunConfig:
    training = {"global_batch_size": 8, "micro_batch_size": 1, "eval_examples": 64} | sections.pop("training", {})
    return validate({"model": SMALL_MODEL | sections.pop("model", {}), "training": training, **sections})


def card_of(memory_mib: int) -> Card:
    return replace(H100, name="small", memory_mib=memory_mib)


def chosen_by(config: RunConfig, words: list[str]) -> RunConfig:
    """The configuration with these words of a command line."""
    values = config.model_dump()
    for word in words:
        override(values, word, SECTIONS)
    return validate(values)


def planned(config: RunConfig, gpus: int, gpus_per_node: int, card: Card) -> Plan:
    return make_plan(config, Layout.of(config, gpus, gpus_per_node), card, NOTHING_RESERVED)


cases = st.fixed_dictionaries(
    {
        "gpus": st.sampled_from([1, 2, 4]),
        "gpus_per_node": st.sampled_from([2, 8]),
        "memory_mib": st.integers(1908, 1970) | st.integers(3815, 3880),  # DeepSpeed's buckets, and the model
        "num_experts": st.sampled_from([0, 4, 6]),
        "within_node": st.booleans(),
        "chunks": st.sampled_from([1, 2]),
        "eval_examples": st.sampled_from([64, 12]),
    }
)


@given(cases)
@settings(max_examples=4, deadline=None)
def test_laws(case: dict[str, Any]):
    chunks = case["chunks"] if case["num_experts"] else 1
    config = configured(
        model={"num_experts": case["num_experts"]},
        parallel={"expert_parallel_within_node": case["within_node"], "all_to_all_chunks": chunks},
        training={"eval_examples": case["eval_examples"]},
    )
    gpus, per_node, card = case["gpus"], case["gpus_per_node"], card_of(case["memory_mib"])
    found = search(config, gpus, card, gpus_per_node=per_node, assumptions=NOTHING_RESERVED)
    everything = list(candidates(config, gpus))
    assert found.tried == len(everything)
    expected = {1, 8 // gpus}
    assert expected <= {candidate.training.micro_batch_size for candidate in everything}
    check_fits(found, config, per_node)
    check_refusals(found, everything, per_node)
    assert_best_first(found)


def check_fits(found: Search, config: RunConfig, per_node: int) -> None:
    for one in found.fits:
        chosen = chosen_by(config, overrides(one.config))
        assert check_layout(chosen, found.gpus) == one.layout.zero_stage
        check_all_to_all(chosen, min(found.gpus, per_node))
        assert Layout.of(chosen, found.gpus, per_node) == one.layout
        plan = planned(chosen, found.gpus, per_node, found.card)
        assert plan.fits
        assert plan.needed == one.needed
        assert plan.times == one.times
        assert one.times.step >= max(plan.times.compute, plan.times.launches)


def check_refusals(found: Search, everything: list[RunConfig], per_node: int) -> None:
    """Each layout that is not listed is refused by a check or too large, and counted in a reason that is true of it."""
    listed = {tuple(overrides(one.config)) for one in found.fits}
    refused = [candidate for candidate in everything if tuple(overrides(candidate)) not in listed]
    messages, too_large = [], []
    for candidate in refused:
        try:
            checked_layout(candidate, found.gpus, per_node)
        except ValueError as error:
            messages.append(str(error))
        else:
            too_large.append(planned(candidate, found.gpus, per_node, found.card))
    assert all(plan.missing for plan in too_large)
    assert sum(reason.layouts for reason in found.refused) == len(messages)
    assert {reason.message for reason in found.refused} <= set(messages)
    assert sum(reason.layouts for reason in found.too_large) == len(too_large)
    for reason in found.too_large:
        members = [plan for plan in too_large if is_of(reason, plan)]
        assert len(members) == reason.layouts
        if reason.states:
            assert all(plan.needed - peak_activations(plan) > plan.card.memory for plan in members)
            assert reason.over == min(plan.missing - peak_activations(plan) for plan in members)
        else:
            assert reason.over == min(plan.missing for plan in members)
            assert any(plan.peak.parts | {"reserved": 0} == reason.parts for plan in members)


def peak_activations(plan: Plan) -> int:
    return plan.peak.parts.get("activations", 0)


def is_of(reason: Any, plan: Plan) -> bool:
    layout, states = plan.layout, plan.missing > peak_activations(plan)
    return (
        states == reason.states
        and layout.zero_stage == reason.zero_stage
        and layout.expert_parallel_size in reason.expert_parallel_sizes
        and layout.micro_batch_size in reason.micro_batch_sizes
        and reason.recompute in (None, layout.recompute)
    )


def assert_best_first(found: Search) -> None:
    rest = found.fits
    while rest:
        limit = CLOSE * min(one.times.step for one in rest)
        equals = rest[: sum(one.times.step <= limit for one in rest)]
        assert all(one.times.step <= limit for one in equals)
        assert equals == sorted(equals, key=lambda one: one.preference)
        rest = rest[len(equals) :]


def test_every_combination_is_a_candidate():
    config = configured(model={"num_experts": 4}, parallel={"all_to_all_chunks": 2})
    found = {
        (
            Path(c.training.deepspeed_config).name, c.parallel.expert_parallel_size, c.training.micro_batch_size,
            c.training.activation_checkpointing, c.parallel.all_to_all_chunks,
        )
        for c in candidates(config, 4)
    }  # fmt: skip
    # Four experts on one rank are no all-to-all, and one expert cannot be divided.
    chunks = {1: 1, 2: 2, 4: 1}
    assert found == {
        (f"zero{stage}.json", size, micro, recompute, chunks[size])
        for stage in (1, 2, 3)
        for size in (1, 2, 4)
        for micro in (1, 2)
        for recompute in (False, True)
    }


def test_the_users_deepspeed_file_is_kept_at_its_stage_and_one_gpu_has_nothing_to_partition():
    config = configured(training={"deepspeed_config": "ds_configs/offload.json"})
    files = {candidate.training.deepspeed_config for candidate in candidates(config, 1)}
    assert files == {f"ds_configs/{name}.json" for name in ("zero0", "zero1", "offload", "zero3")}


KEYS = (
    "training.deepspeed_config", "training.micro_batch_size", "training.activation_checkpointing",
    "parallel.expert_parallel_size", "parallel.all_to_all_chunks",
)  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_what_is_given_is_held_fixed(key: str):
    """The layouts are those of all that have the given value."""
    config = configured(
        model={"num_experts": 4},
        parallel={"expert_parallel_size": 2, "all_to_all_chunks": 2},
        training={"micro_batch_size": 2, "activation_checkpointing": True, "deepspeed_config": "ds_configs/zero2.json"},
    )

    def values(candidate: RunConfig) -> dict[str, str]:
        return {word.partition("=")[0]: word.partition("=")[2] for word in overrides(candidate)}

    own = values(config)[key]
    free, held = (list(map(values, candidates(config, 4, given))) for given in ((), {key, "training.steps"}))
    assert len({found[key] for found in free}) > 1
    assert {found[key] for found in held} == {own}
    if key != "parallel.all_to_all_chunks":  # which is otherwise one where two are impossible
        assert held == [found for found in free if found[key] == own]
    found = search(config, 4, H100, given={key})
    assert {values(one.config)[key] for one in found.fits} == {own}
    assert found.fixed == [f"{key}={own}"]
    assert f"\nfixed, as given on the command line: {key}={own}\n" in text(found)


def test_a_given_value_that_leaves_no_layout_is_one_line():
    config = configured(training={"micro_batch_size": 3})
    with pytest.raises(ConfigError) as error:
        search(config, 4, H100, given={"training.micro_batch_size"})
    assert str(error.value) == (
        "--gpus 4: there is no layout with training.micro_batch_size=3, which --search holds fixed: "
        "training.global_batch_size = 8 is not divisible by training.micro_batch_size x --gpus = 3 x 4: set a multiple "
        "of 12, or training.micro_batch_size=2"
    )
    config = configured(parallel={"expert_parallel_size": 4})
    with pytest.raises(ConfigError, match=r"parallel.expert_parallel_size = 4 does not divide --gpus 2: set --gpus to"):
        search(config, 2, H100, given={"parallel.expert_parallel_size"})


def test_of_equal_layouts_the_simplest_is_best():
    """A small model launches its kernels, whatever the layout, and needs little memory."""
    best = search(configured(), 4, H100).fits[0].layout
    assert (best.zero_stage, best.expert_parallel_size, best.micro_batch_size, best.recompute) == (1, 1, 2, False)


def test_a_batch_that_cannot_be_spread_is_one_line():
    with pytest.raises(
        ConfigError,
        match=r"training.global_batch_size = 8 is not divisible by --gpus 3: set a multiple of 3, or --gpus 2 or 4$",
    ):
        search(configured(), 3, H100)


def test_the_table_says_which_part_is_too_large_and_how_to_choose_the_best():
    found = search(configured(), 4, card_of(3825), assumptions=NOTHING_RESERVED)
    shown = text(found)
    assert found.fits
    assert found.too_large
    assert f"4 GPUs (small of 3.7 GiB): {len(found.fits)} of {found.tried} layouts fit" in shown
    assert f"best: {' '.join(overrides(found.fits[0].config))}" in shown
    for reason in found.too_large:
        assert f"  {reason}" in shown
    assert len(shown.splitlines()) < 40


def test_nothing_fits():
    found = search(configured(), 2, card_of(1), given={"parallel.expert_parallel_size"})
    assert not found.fits
    shown = text(found)
    assert "best:" not in shown
    assert "too large:" in shown
    assert {reason.zero_stage for reason in found.too_large} == {1, 2, 3}
    line, nearest = nothing_fits(found), found.nearest
    assert nearest is not None
    assert f"fits small: the nearest, {nearest.chosen}, lacks {memory(nearest.over)} on each: try" in line
    assert line.endswith(
        "try to leave out parallel.expert_parallel_size=1, more GPUs (--gpus) or a card with more memory (--card)"
    )
    layout = nearest.layout
    least = make_plan(chosen_by(configured(), shown_words(layout)), layout, found.card)
    assert (least.missing, least.missing > 0) == (nearest.over, True)


def shown_words(layout: Layout) -> list[str]:
    return [
        f"training.deepspeed_config=ds_configs/zero{layout.zero_stage}.json",
        f"training.micro_batch_size={layout.micro_batch_size}",
        f"training.activation_checkpointing={str(layout.recompute).lower()}",
        f"parallel.expert_parallel_size={layout.expert_parallel_size}",
    ]


def test_a_reserve_that_is_too_much_is_named():
    config = configured()
    found = search(config, 2, H100, assumptions=Assumptions(reserved=79 * 2**30))
    assert "try a smaller --reserve, more GPUs" in nothing_fits(found)
    plan = make_plan(config, Layout.of(config, 2), H100, Assumptions(reserved=79 * 2**30))
    assert verdict(plan).endswith("; try a smaller --reserve than 79")


@pytest.mark.parametrize(
    ("values", "words"), [([4], "4"), ([1, 2], "1 and 2"), ([1, 2, 4], "1, 2 and 4"), ([1, 2, 4, 8], "1 to 8")]
)
def test_numbers_are_told_shortly(values: list[int], words: str):
    assert spread(values) == words


def test_a_search_needs_what_a_plan_needs():
    """Under ZeRO 3, recomputation gathers other weights at once."""
    words = ["parallel.expert_parallel_size=1", "training.deepspeed_config=ds_configs/zero3.json"]
    config = load_config(ROOT / "configs" / "st_moe_l.yaml", [*words, "training.micro_batch_size=16"])
    given = {"parallel.expert_parallel_size", "training.deepspeed_config", "training.micro_batch_size"}
    found = search(config, 16, H100, given=given).fits
    assert {one.layout.recompute for one in found} == {False, True}
    for one in found:
        assert one.needed == make_plan(one.config, one.layout, H100).needed
