"""Variants of a base configuration: settings, equal FLOPs, identity."""

from pathlib import Path

import pytest

from studies.design_space.trials import Trial, trials_of
from studies.design_space.variants import BASELINE, VARIANTS
from studies.results.keys import config_key
from studies.runner.runs import with_overrides
from tests.support.small import small_config
from training.config.errors import ConfigError
from training.config.run import RunConfig, load_config
from training.planning.cost import cost_of, example_lengths

LARGE = "configs/st_moe_l.yaml"


def by_name(config: RunConfig) -> dict[str, Trial]:
    return {name: trial for trial in trials_of(config)[0] for name in trial.names}


def test_every_variant_of_a_large_model_can_be_and_no_configuration_is_trained_twice():
    config = load_config(LARGE)
    trials, impossible = trials_of(config)
    assert impossible == {}
    assert sorted(name for trial in trials for name in trial.names) == sorted(VARIANTS)
    assert len({trial.key for trial in trials}) == len(trials)
    assert trials[0].names[0] == BASELINE
    assert {"top2_cf1.25", "extra_after", "bias_none"} <= set(trials[0].names)  # what the base has already
    named = by_name(config)
    assert named["plain_cf0.75"] is named["top1_cf0.75"]
    assert named["experts_4"].overrides["parallel.expert_parallel_size"] == 4  # of 8 in the base
    assert named["bpr_cf0.5"].factors == (0.5,)
    assert named["top2_cf2"].factors == (0.75, 1.0, 1.25, 3.0)  # the run itself is evaluated at 2.0


@pytest.mark.parametrize("file", [LARGE, "configs/tiny.yaml"])
def test_models_of_equal_flops(file: str):
    config = load_config(file)
    named, base = by_name(config), cost_of(config)
    equal = [name for name in VARIANTS if name.endswith("_equal") or name == "dense"]
    for name in equal:
        assert cost_of(named[name].config).forward_flops == pytest.approx(base.forward_flops, rel=0.01), name
    assert named["top3_cf2_equal"].config.architecture().d_ff < config.architecture().d_ff
    assert named["dense"].config.architecture().num_experts == 0


def test_cost_is_the_sum_of_parts_worked_by_hand(tmp_path: Path):
    """A dense model of one block per stack: 2 FLOPs per multiply-add of each matrix product of an example."""
    config = small_config(tmp_path, model={"num_layers": 1, "num_experts": 0}, data={"inputs_length": 32})
    inputs, targets = example_lengths(config.data)
    assert (inputs, targets) == (32, 8)  # 34 raw tokens, 5 of them masked, in 2 spans, and EOS: T5's arithmetic
    d, inner, width, vocabulary = 32, 32, 48, 256
    encoder = inputs * (4 * d * inner + 3 * d * width) + 2 * inputs * inputs * inner
    decoder = targets * (6 * d * inner + 3 * d * width) + 2 * targets * targets * inner
    cross = inputs * 2 * d * inner + 2 * targets * inputs * inner
    head = targets * d * vocabulary
    cost = cost_of(config)
    assert cost.forward_flops == 2 * (encoder + decoder + cross + head)
    assert cost.training_flops_of_token == 3 * cost.forward_flops / (inputs + targets)


def test_the_key_is_of_what_a_run_computes(tmp_path: Path):
    config = small_config(tmp_path)
    key = config_key(config)
    same = {
        "training.name": "other", "training.output_dir": "elsewhere", "training.seed": 7, "training.log_every": 1,
        "training.keep_checkpoints": 3, "data.num_workers": 0, "model.feed_forward_bias": "none",
    }  # fmt: skip
    assert {config_key(with_overrides(config, {k: v})) for k, v in same.items()} == {key}
    other = {
        "training.steps": 7, "training.micro_batch_size": 2, "model.top_n": 1, "data.seed": 1, "data.inputs_length": 64,
        "optimizer.learning_rate": 0.5, "training.precision": "bf16",
    }  # fmt: skip
    keys = {config_key(with_overrides(config, {k: v})) for k, v in other.items()}
    assert len(keys) == len(other) and key not in keys


def test_what_a_base_cannot_have_is_left_out_or_refused(tmp_path: Path):
    config = small_config(tmp_path, model={"num_layers": 2, "sparse_step": 2})
    trials, impossible = trials_of(config)
    assert list(impossible) == ["sparse_step_4"] and trials
    with pytest.raises(ConfigError, match=r"--only sparse_step_4: model.sparse_step = 4 leaves no sparse layer"):
        trials_of(config, ["sparse_step_4"])
    with pytest.raises(ConfigError, match="--only top4: no such variant; choose from baseline"):
        trials_of(config, ["top4"])
    with pytest.raises(ConfigError, match="put key=value before --only"):
        trials_of(config, ["training.steps=3"])
    with pytest.raises(ConfigError, match=r"model.num_experts = 0: the study is of sparse models"):
        trials_of(small_config(tmp_path, model={"num_experts": 0}))
    with pytest.raises(ConfigError, match=r"data.objective = tasks: the study is of pretraining"):
        trials_of(small_config(tmp_path, data={"objective": "tasks", "tasks": ["cb"]}))
    (one,) = trials_of(config, ["plain_cf0.75"])[0]
    assert "plain_cf0.75" in one.names
