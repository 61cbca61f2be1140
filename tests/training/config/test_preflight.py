"""What is refused before any model is built, because of ranks, files or data."""

import gzip
import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from common.project import ROOT
from data.streaming.identity import VOCABULARY
from data.tokenizer import Tokenizer
from tests.support.checkpoints import write_checkpoint
from tests.support.small import small_config
from training.checkpoint.resume import check_same_vocabulary, describe_resume, find_checkpoint
from training.checkpoint.store.layout import ParallelLayout
from training.config import deepspeed_keys
from training.config.checks import check_all_to_all, check_layout
from training.config.deepspeed import deepspeed_config, read_deepspeed_file
from training.config.errors import ConfigError
from training.config.run import RunConfig, validate
from training.inputs import prepare
from training.run.kept_inputs import keep_inputs
from training.run.process import Process

ALONE = Process(rank=0, local_rank=0, world_size=1, local_world_size=1)


@pytest.mark.parametrize(
    ("sections", "world_size", "words"),
    [
        ({"parallel": {"expert_parallel_size": 3}}, 3, ["parallel.expert_parallel_size = 3", "model.num_experts = 4"]),
        ({"parallel": {"expert_parallel_size": 2}}, 3, ["parallel.expert_parallel_size = 2", "world size 3"]),
        ({"parallel": {"expert_parallel_size": 4}}, 2, ["parallel.expert_parallel_size = 4", "world size 2"]),
        (
            {"parallel": {"expert_parallel_size": 2}, "model": {"num_experts": 0}},
            2,
            ["parallel.expert_parallel_size = 2", "model.num_experts = 0", "dense"],
        ),
        ({"training": {"global_batch_size": 9}}, 1, ["training.global_batch_size = 9", "multiple of 4"]),
        ({}, 3, ["training.global_batch_size = 8", "multiple of 12"]),
        ({"training": {"eval_examples": 5}}, 1, ["training.eval_examples = 5", "multiple of 4"]),
    ],
)
def test_layouts_that_cannot_work(sections: dict[str, Any], world_size: int, words: list[str], tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        check_layout(small_config(tmp_path, **sections), world_size)
    message = str(error.value)
    assert [word for word in ["\n", *words] if (word in message) == (word == "\n")] == [], message


@pytest.mark.parametrize(
    ("sections", "world_size", "line"),
    [
        (  # 4 experts
            {"parallel": {"expert_parallel_size": 4}},
            6,
            "parallel.expert_parallel_size = 4 does not divide --gpus 6: set --gpus to a multiple of 4, or "
            "parallel.expert_parallel_size=2",
        ),
        (
            {"training": {"global_batch_size": 24, "micro_batch_size": 8}},
            2,
            "training.global_batch_size = 24 is not divisible by training.micro_batch_size x --gpus = 8 x 2: set a "
            "multiple of 16, or training.micro_batch_size=6",
        ),
        (
            {"training": {"global_batch_size": 24, "micro_batch_size": 2}},
            5,
            "training.global_batch_size = 24 is not divisible by training.micro_batch_size x --gpus = 2 x 5: set a "
            "multiple of 10, or --gpus 4 or 6",
        ),
        (  # expert parallelism wants an even number of ranks
            {"training": {"global_batch_size": 60, "micro_batch_size": 5}, "parallel": {"expert_parallel_size": 2}},
            8,
            "training.global_batch_size = 60 is not divisible by training.micro_batch_size x --gpus = 5 x 8: set a "
            "multiple of 40, or --gpus 6 or 12",
        ),
        (
            {"training": {"global_batch_size": 24, "micro_batch_size": 4}},
            100,
            "training.global_batch_size = 24 is not divisible by training.micro_batch_size x --gpus = 4 x 100: set a "
            "multiple of 400, or --gpus 6 (with training.micro_batch_size=1 up to 24)",
        ),
        (
            {"training": {"global_batch_size": 24, "micro_batch_size": 4, "eval_examples": 18}},
            6,
            "training.eval_examples = 18 is not divisible by training.micro_batch_size x --gpus = 4 x 6: set a "
            "multiple of 24, or training.micro_batch_size=1",
        ),
        (
            {"training": {"global_batch_size": 24, "micro_batch_size": 4, "eval_examples": 20}},
            6,
            "training.eval_examples = 20 is not divisible by training.micro_batch_size x --gpus = 4 x 6: set a "
            "multiple of 24",
        ),
    ],
)
def test_a_fix_names_the_option_and_works(sections: dict[str, Any], world_size: int, line: str, tmp_path: Path):
    config = small_config(tmp_path, **sections)
    with pytest.raises(ConfigError) as error:
        check_layout(config, world_size, option="--gpus")
    assert str(error.value) == line
    with pytest.raises(ConfigError) as error:
        check_layout(config, world_size)
    assert "--gpus" not in str(error.value)


@pytest.mark.parametrize(
    ("parallel", "words"),
    [
        (
            {"expert_parallel_size": 4, "expert_parallel_within_node": True},
            ["parallel.expert_parallel_size = 4", "6 ranks of a node", "a divisor of 6"],
        ),
        ({"all_to_all_chunks": 2}, ["parallel.all_to_all_chunks = 2", "parallel.expert_parallel_size = 1", "set 1"]),
        (
            {"expert_parallel_size": 2, "all_to_all_chunks": 3},
            ["parallel.all_to_all_chunks = 3", "2 experts of a rank", "a divisor of 2"],
        ),
    ],
)
def test_all_to_all_that_cannot_be_as_asked(parallel: dict[str, Any], words: list[str], tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        check_all_to_all(small_config(tmp_path, parallel=parallel), ranks_of_node=6)
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


def test_experts_within_a_node_or_across(tmp_path: Path):
    within = {"expert_parallel_size": 2, "expert_parallel_within_node": True, "all_to_all_chunks": 2}
    check_all_to_all(small_config(tmp_path, parallel=within), ranks_of_node=6)
    check_all_to_all(small_config(tmp_path, parallel={"expert_parallel_size": 4}), ranks_of_node=6)


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


def _config(tmp_path: Path, data: dict[str, Any], **training: Any) -> RunConfig:
    return small_config(tmp_path, data=data, training={"eval_examples": 8, **training})


def test_good_inputs_are_opened(corpus: dict[str, Any], tmp_path: Path):
    inputs = prepare(_config(tmp_path, corpus), ALONE, resume=False)
    assert inputs.zero_stage == 1
    assert [batch["input_ids"].shape for batch in inputs.validation] == [(4, 32), (4, 32)]


def test_missing_and_unfit_inputs(corpus: dict[str, Any], tmp_path: Path):
    def refused(data: dict[str, Any], model: dict[str, Any] | None = None) -> str:
        config = small_config(tmp_path, data=corpus | data, model=model, training={"eval_examples": 8})
        with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
            prepare(config, ALONE, resume=False)
        return str(error.value)

    assert "data.train_files = 'nowhere/*.gz' matches no file" in refused({"train_files": "nowhere/*.gz"})
    assert "data.validation_files" in refused({"validation_files": "nowhere/*.gz"})
    assert "data.vocabulary" in refused({"vocabulary": "nowhere"})
    assert "data.num_streams = 64" in refused({"num_streams": 64})
    assert "model.vocab_size = 128" in refused({}, {"vocab_size": 128})
    empty = tmp_path / "empty.json.gz"
    with gzip.open(empty, "wt") as file:
        file.write("\n" * 10)
    assert "data.validation_files" in refused({"validation_files": str(empty)})
    assert "data.train_files" in refused({"train_files": str(empty), "num_streams": 1})
    without_sentinels = tmp_path / "vocabulary"
    shutil.copytree(corpus["vocabulary"], without_sentinels)
    (without_sentinels / "tokenizer_config.json").write_text('{"extra_ids": 0}')
    assert "extra_ids" in refused({"vocabulary": str(without_sentinels)})


def test_a_run_is_never_overwritten(corpus: dict[str, Any], tmp_path: Path):
    config = _config(tmp_path, corpus)
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"training\.name = small: .* already holds a run that .* add --restart"):
        prepare(config, ALONE, resume=False)


def test_resume_refuses_another_model_or_nothing(tmp_path: Path):
    config = small_config(tmp_path)
    with pytest.raises(ConfigError, match=r"--resume: .* holds no checkpoint"):
        find_checkpoint(config, 2, 1)
    write_checkpoint(config)
    assert find_checkpoint(config, 2, 1).state.step == 4
    values = config.model_dump()
    for section, key, value in (
        ("model", "d_ff", 64),
        ("optimizer", "learning_rate", 1.0),
        ("training", "seed", 5),
        ("training", "global_batch_size", 16),
    ):
        other = validate(values | {section: values[section] | {key: value}})
        with pytest.raises(ConfigError, match=rf"^--resume: {section}\.{key} is {value} but [^\n]+$"):
            find_checkpoint(other, 2, 1)
    write_checkpoint(config, format=1)
    with pytest.raises(
        ConfigError, match=r"trainer_state\.json is of format 1, this version reads 3 to 4: begin a new run"
    ):
        find_checkpoint(config, 2, 1)
    (config.run_dir / "checkpoints" / "step_00000004" / "trainer_state.json").write_text('{"step": 4')
    with pytest.raises(ConfigError, match=r"holds no intact checkpoint \(step_00000004: trainer_state\.json has"):
        find_checkpoint(config, 2, 1)


def test_resume_with_another_vocabulary_names_that_of_the_run(corpus: dict[str, Any], tmp_path: Path):
    config = small_config(tmp_path, data=corpus)
    write_checkpoint(config, data={"identity": {VOCABULARY: "other"}})
    checkpoint, tokenizer = find_checkpoint(config, 2, 1), Tokenizer(config.data.vocabulary)
    with pytest.raises(ConfigError, match=f": set data.vocabulary={config.data.vocabulary} to resume, or "):
        check_same_vocabulary(config, checkpoint, tokenizer)
    keep_inputs(config.run_dir, config, tokenizer)
    with pytest.raises(ConfigError, match=f": set data.vocabulary={config.run_dir}/vocabulary to resume, or "):
        check_same_vocabulary(config, checkpoint, tokenizer)
    write_checkpoint(config, data={"identity": {VOCABULARY: tokenizer.fingerprint}})
    check_same_vocabulary(config, find_checkpoint(config, 2, 1), tokenizer)


def test_resume_says_what_changes(tmp_path: Path):
    config = small_config(tmp_path)
    write_checkpoint(config)
    checkpoint = find_checkpoint(config, 2, 1)
    folder = config.run_dir / "checkpoints" / "step_00000004"
    assert describe_resume(checkpoint, ParallelLayout.of(config.model_dump(), 2, 1)) == f"going on from {folder}"
    other = small_config(tmp_path, parallel={"expert_parallel_size": 2}, training={"precision": "bf16"})
    assert describe_resume(checkpoint, ParallelLayout.of(other.model_dump(), 4, 3)) == (
        f"going on from {folder}, which was written at EP 1, world 2, ZeRO 1, fp32, at EP 2, world 4, ZeRO 3, bf16"
    )


PREPARE = """
import sys
import train
from training.config.run import load_config
from training.inputs import prepare
from training.run.process import Process
config = load_config(sys.argv[1])
prepare(config, Process.from_environment(), resume=False).loader.close()
print(*sorted({"torch", "transformers", "deepspeed", "datasets", "matplotlib"} & set(sys.modules)), sep=",")
"""


def test_everything_before_the_model_needs_no_torch(corpus: dict[str, Any], tmp_path: Path):
    """The imports take seconds, and mistakes must be found at once. pytest has them loaded: look in a new process."""
    file = tmp_path / "config.yaml"
    OmegaConf.save(OmegaConf.create(_config(tmp_path, corpus).model_dump()), file)
    command = [sys.executable, "-c", PREPARE, str(file)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "\n"
