"""The presets of the paper's models: their sizes as published, and the paper's recipe."""

import functools

import pytest
import torch

from common.project import ROOT
from model.flops import forward_flops
from model.size import count_parameters
from model.st_moe import StMoeForConditionalGeneration
from training.config.run import RunConfig, load_config
from training.planning.cost import example_lengths

SPARSE = ("st_moe_base", "st_moe_l", "st_moe_xl", "st_moe_32b", "switch_c", "switch_xxl")
PRESETS = ("dense_l", "dense_xl", "t5_xxl", *SPARSE)


@functools.cache
def preset(name: str) -> RunConfig:
    return load_config(ROOT / "configs" / f"{name}.yaml")


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("st_moe_l", "4.105"),
        ("st_moe_32b", "269.10"),
        ("dense_l", "0.783"),
        ("switch_c", "1571"),
        ("switch_xxl", "395"),
        ("t5_xxl", "11.1"),
    ],
)
def test_parameters_are_those_published(name: str, billions: str):
    with torch.device("meta"):
        model = StMoeForConditionalGeneration(preset(name).st_moe_config())
    counted = sum(parameter.numel() for parameter in model.parameters())
    decimals = len(billions.partition(".")[2])
    assert f"{counted / 1e9:.{decimals}f}" == billions
    total, active = count_parameters(preset(name).architecture())
    assert total == counted
    assert (active < total) == (name in SPARSE)


def test_flops_of_the_largest_model_are_the_papers():
    config = preset("st_moe_32b")
    assert example_lengths(config.data) == (512, 114)
    flops = forward_flops(config.st_moe_config(), 4, 512, 114).total / 4
    assert flops == pytest.approx(20.3e12, rel=0.01)


@pytest.mark.parametrize("name", PRESETS)
def test_the_recipe_is_the_papers(name: str):
    config = preset(name)
    model, data, optimizer, training = config.architecture(), config.data, config.optimizer, config.training
    assert training.global_batch_size * data.inputs_length == 2**20
    assert (data.objective, *example_lengths(data)) == ("span_corruption", 512, 114)
    assert data.num_streams == 1024
    assert training.precision == "bf16_autocast"
    assert optimizer.name == "adafactor"
    assert (optimizer.schedule, optimizer.warmup, optimizer.warmup_steps) == ("rsqrt", "constant", 10_000)
    assert optimizer.learning_rate == 10_000**-0.5
    assert (optimizer.update_clipping, optimizer.gradient_clipping, optimizer.weight_decay) == (1.0, 0.0, 0.0)
    assert (model.dropout_rate, model.expert_dropout_rate, model.output_z_coefficient) == (0, 0, 1e-4)
    assert model.initializer_scale == (1.0 if name == "t5_xxl" else 0.1)
    if name not in SPARSE:
        return
    assert (model.gating, model.load_balance_coefficient) == ("top_n", 1e-2)
    if name.startswith("switch"):
        assert (model.top_n, model.extra_feed_forward, model.router_jitter) == (1, "none", 1e-2)
        assert model.router_z_coefficient == 0
    else:
        assert (model.top_n, model.extra_feed_forward, model.router_jitter) == (2, "after", 0)
        assert (model.train_capacity_factor, model.eval_capacity_factor, model.group_size) == (1.25, 2.0, 2048)
        assert (model.router_z_coefficient, model.second_policy, model.second_threshold) == (1e-3, "random", 0.2)


@pytest.mark.parametrize(
    ("name", "sparse", "blocks"),
    [("st_moe_base", 3, 12), ("st_moe_32b", 6, 24), ("switch_xxl", 12, 24), ("switch_c", 15, 15)],
)
def test_sparse_layers_of_each_stack(name: str, sparse: int, blocks: int):
    model = preset(name).architecture()
    names = model.sparse_layer_names()
    assert len(names) == 2 * sparse
    assert names[0] == f"encoder_{blocks // sparse - 1}"
    assert names[-1] == f"decoder_{blocks - 1}"


def test_the_mixture_of_the_largest_model_is_the_papers():
    sources = preset("st_moe_32b").data.train_sources()
    assert [source.weight for source in sources] == [0.17, 0.34, 0.05, 0.23, 0.02, 0.17, 0.02]
    assert sources[0].keys.source == "hub"
    alone = load_config(ROOT / "configs" / "st_moe_32b.yaml", ["data.mixture=[]"]).data.train_sources()
    assert [(source.keys.hub_dataset, source.keys.hub_config) for source in alone] == [("allenai/c4", "en")]
