"""Each variant changes exactly one thing of the baseline; seeds change the seed."""

from pathlib import Path
from typing import Any

import pytest

from model.size import count_parameters
from studies.runner.runs import make_run
from studies.stability.variants import BASELINE, VARIANTS, variant_overrides
from training.config.errors import ConfigError
from training.config.run import load_config

CHANGED: dict[str, dict[str, Any]] = {
    "no_geglu": {"model.feed_forward": "relu", "model.d_ff": 72},
    "no_rms_scale": {"model.rms_norm_scale": False},
    "input_jitter": {"model.router_jitter": 0.01},
    "dropout": {"model.dropout_rate": 0.1},
    "update_clipping": {"optimizer.update_clipping": 0.1},
    "router_z_loss": {"model.router_z_coefficient": 0.001},
}


def flat(config: Any) -> dict[str, Any]:
    return {f"{s}.{key}": value for s, section in config.model_dump().items() for key, value in section.items()}


def run_config(config_file: str, variant: str, seed: int, out: Path) -> dict[str, Any]:
    overrides = variant_overrides(variant, load_config(config_file))
    return flat(make_run(config_file, ["training.steps=20"], variant, seed, out, overrides).config)


def test_every_variant_is_the_baseline_but_for_one_thing(config_file: str, tmp_path: Path):
    baseline = run_config(config_file, BASELINE, 0, tmp_path)
    assert baseline["model.router_z_coefficient"] == 0
    assert {BASELINE, *CHANGED} == set(VARIANTS)
    for name, expected in CHANGED.items():
        variant = run_config(config_file, name, 0, tmp_path)
        changed = {key: value for key, value in variant.items() if value != baseline[key]}
        assert changed == {"training.name": f"{name}-0", **expected}, name


def test_a_seed_changes_the_seed_of_training_alone(config_file: str, tmp_path: Path):
    first, second = (run_config(config_file, BASELINE, seed, tmp_path) for seed in (0, 4))
    changed = {key: (first[key], second[key]) for key in first if first[key] != second[key]}
    assert changed == {"training.seed": (0, 4), "training.name": ("baseline-0", "baseline-4")}


def test_relu_has_the_parameters_of_geglu(config_file: str):
    sizes = [
        count_parameters(load_config(config_file, overrides).st_moe_config())
        for overrides in ([], ["model.feed_forward=relu", "model.d_ff=72"])
    ]
    assert sizes[0] == sizes[1]


def test_a_variant_equal_to_the_baseline_is_refused(config_file: str):
    with pytest.raises(ConfigError, match=r"model\.router_jitter = 0\.01 already.*input_jitter.*baseline again"):
        variant_overrides("input_jitter", load_config(config_file, ["model.router_jitter=0.01"]))
    with pytest.raises(ConfigError, match=r"model\.d_ff = 50.*multiple of 4"):
        variant_overrides("no_geglu", load_config(config_file, ["model.d_ff=50"]))
    with pytest.raises(ConfigError, match=r"model\.num_experts = 0"):
        variant_overrides(BASELINE, load_config(config_file, ["model.num_experts=0"]))


def test_the_papers_figures():
    # SPEC of the study: tables 2-4 of Zoph et al. 2022
    figures = {name: VARIANTS[name].paper[1:] for name in VARIANTS}
    assert figures == {
        "baseline": (4, 6, -1.755, 0.02),
        "no_geglu": (3, 3, -1.849, 0.02),
        "no_rms_scale": (3, 3, -2.020, 0.06),
        "input_jitter": (3, 3, -1.777, 0.03),
        "dropout": (3, 3, -1.822, 0.11),
        "update_clipping": (3, 3, -4.206, 0.17),
        "router_z_loss": (3, 3, -1.741, 0.02),
    }
