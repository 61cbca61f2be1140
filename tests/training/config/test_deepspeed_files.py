"""What is refused of DeepSpeed's files and of its ways to train, and what is asked of it."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from common.project import ROOT
from tests.support.small import small_config
from training.config import deepspeed_keys
from training.config.checks import check_layout
from training.config.deepspeed import deepspeed_config, read_deepspeed_file
from training.config.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"fp16": {"enabled": true}}', ["fp16", "overflows", "training.precision"]),
        ('{"train_batch_size": 8}', ["'train_batch_size'", "training.global_batch_size"]),
        ('{"optimizer": {}}', ["'optimizer'", "the optimizer section"]),
        ('{"zero_optimization": {"stage": 4}}', ["zero_optimization.stage = 4: must be one of 0, 1, 2, 3"]),
        ('{"zero_optimization": {"stage": "2"}}', ['zero_optimization.stage = "2": must be one of 0, 1, 2, 3']),
        ('{"zero_optimization": {"stage": true}}', ["zero_optimization.stage = true: must be one of 0, 1, 2, 3"]),
        ('{"zero_optimization": true}', ["zero_optimization = true: must be an object"]),
        ('{"zero_optimization": 3}', ["zero_optimization = 3: must be an object"]),
        ('{"zero_optimisation": {"stage": 3}}', ["zero_optimisation: DeepSpeed", "did you mean zero_optimization?"]),
        ('{"zero_optimization": {"stages": 3}}', ["did you mean zero_optimization.stage?"]),
        ('{"stage": 3}', ["stage: DeepSpeed", "did you mean zero_optimization.stage?"]),
        (
            '{"zero_optimization": {"offload_optimizer": {"dev": "cpu"}}}',
            ["mean zero_optimization.offload_optimizer.dev"],
        ),
        (
            '{"zero_optimization": {"offload_optimizer": {"device": "gpu"}}}',
            ['"gpu": must be one of "none", "cpu", "nvme"'],
        ),
        ('{"zero_optimization": {"overlap_comm": "true"}}', ['overlap_comm = "true": must be a boolean']),
        ('{"zero_optimization": {"wall_clock_breakdown": true}}', ["did you mean wall_clock_breakdown?"]),
        ('{"wall_clock_breakdown": "yes"}', ['wall_clock_breakdown = "yes": must be a boolean']),
        ('{"tensorboard": {"enable": true}}', ["did you mean tensorboard.enabled?"]),
        ('{"elasticity": {"enabled": true}}', ["elasticity: DeepSpeed", "knows no such key"]),
        ('{"zero_force_ds_cpu_optimizer": true}', ["zero_force_ds_cpu_optimizer must be false: remove it"]),
        ('{"zero_optimization": {}, "zero_optimization": {}}', ["'zero_optimization' is given twice"]),
        ("{", ["not valid JSON"]),
        ('{"zero_optimization": {"stage": 1}, // one\n}', ["not valid JSON", "JSON has no comments"]),
        ("[]", ["JSON object"]),
        (None, ["no such file"]),
    ],
)
def test_deepspeed_files_that_are_refused(text: str | None, words: list[str], tmp_path: Path):
    file = tmp_path / "ds.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError) as error:
        check_layout(small_config(tmp_path, training={"deepspeed_config": str(file)}), 1)
    message = str(error.value)
    assert [word for word in [str(file), *words] if word not in message] == [], message


@pytest.mark.parametrize(
    ("zero", "words"),
    [
        ({"stage": 3, "offload_optimizer": {"device": "nvme"}}, ["offload_optimizer.device = nvme", "adafactor"]),
        ({"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}, ["offload_optimizer.ratio = 0.5"]),
        ({"stage": 2, "zenflow": {"topk_ratio": 0.1}}, ["zenflow", "set adamw"]),
        ({"stage": 1, "compute_grad_norm": False}, ["compute_grad_norm = false", "not finite"]),
    ],
)
def test_deepspeed_options_that_the_optimizer_cannot_run_with(zero: dict[str, Any], words: list[str], tmp_path: Path):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": zero}))
    config = small_config(tmp_path, training={"deepspeed_config": str(file)})
    with pytest.raises(ConfigError, match=r"^[^\n]+$") as error:
        check_layout(config, 1)
    assert [word for word in [str(file), *words] if word not in str(error.value)] == [], str(error.value)
    check_layout(small_config(tmp_path, training={"deepspeed_config": "ds_configs/offload.json"}), 1)


def test_deepspeed_options_that_are_right(tmp_path: Path):
    file = tmp_path / "ds.json"
    zero = {"stage": 2, "reduce_bucket_size": 5e8, "allgather_bucket_size": "auto", "offload_optimizer": None}
    others = {"wall_clock_breakdown": True, "steps_per_print": 5}
    text = json.dumps({"zero_optimization": zero, **others, "tensorboard": {"enabled": True, "output_path": "x"}})
    file.write_text(text)
    assert read_deepspeed_file(str(file)) == json.loads(text)
    for path in (ROOT / "ds_configs").glob("*.json"):
        read_deepspeed_file(str(path))


def test_the_table_of_deepspeed_keys_is_that_of_the_installed_version():
    """``python -m training.config.deepspeed_keys`` writes it."""
    table = json.loads(deepspeed_keys.FILE.read_text(encoding="utf-8"))
    assert table["version"] == metadata.version("deepspeed")
    asked = deepspeed_keys.ask_deepspeed()
    assert table["keys"] == asked
    assert {"stage", "offload_param", "zero_hpz_partition_size"} <= asked["zero_optimization"]["keys"].keys()


def test_another_deepspeed_is_asked_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metadata, "version", lambda _: "9.9")
    monkeypatch.setattr(deepspeed_keys, "ask_deepspeed", lambda: {"new_key": {"types": []}})
    assert deepspeed_keys.known_keys() == ("9.9", {"new_key": {"types": []}})


@pytest.mark.parametrize(
    ("stage", "training", "words"),
    [
        (1, {"gradient_accumulate_dtype": "bf16"}, ["= bf16", "training.precision = fp32", "set fp32"]),
        (1, {"gradient_accumulate_dtype": "bf16", "precision": "bf16_autocast"}, ["bf16_autocast", "set fp32"]),
        (0, {"precision": "bf16"}, ["= fp32", "training.precision = bf16", "zero1.json", "set bf16"]),
    ],
)
def test_sums_of_gradients_that_deepspeed_cannot_make(
    stage: int, training: dict[str, str], words: list[str], tmp_path: Path
):
    with pytest.raises(ConfigError, match=r"^training\.gradient_accumulate_dtype = [^\n]+$") as error:
        check_layout(small_config(tmp_path, zero_stage=stage, training=training), 1)
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)
    one_micro_batch = training | {"micro_batch_size": 8}
    if stage == 0:  # nothing is summed
        check_layout(small_config(tmp_path, zero_stage=stage, training=one_micro_batch), 1)


def test_what_cannot_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=r"^training\.compile = true [^\n]*ZeRO stage 3[^\n]*zero2\.json[^\n]*$"):
        check_layout(small_config(tmp_path, zero_stage=3, training={"compile": True}), 1)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        ConfigError, match=r"^training\.compile = true [^\n]*no no-such-compiler here: install g[^\n]*$"
    ):
        check_layout(small_config(tmp_path, training={"compile": True}), 1)
    check_layout(small_config(tmp_path), 1)


def test_adamw_8bit_needs_its_package_and_a_cuda_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = small_config(tmp_path, optimizer={"name": "adamw_8bit"})
    found: dict[str, object] = {}
    monkeypatch.setattr("training.config.checks.find_spec", found.get)
    with pytest.raises(ConfigError, match=r"optimizer\.name = adamw_8bit needs the package bitsandbytes: pip install"):
        check_layout(config, 1)
    found["bitsandbytes"] = object()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"optimizer\.name = adamw_8bit needs a CUDA device, .* set adafactor or"):
        check_layout(config, 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check_layout(config, 1)


def test_deepspeed_config_is_completed_from_the_run_config(tmp_path: Path):
    config = small_config(tmp_path, training={"precision": "bf16_autocast", "micro_batch_size": 2})
    options = deepspeed_config(config, world_size=2)
    assert options["gradient_accumulation_steps"] == 2
    assert options["train_batch_size"] == 8
    assert options["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert options["communication_data_type"] == "fp32"
    assert options["bf16"] == {"enabled": False}
    assert options["zero_optimization"] == {"stage": 1}
