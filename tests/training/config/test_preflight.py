"""What is refused before any model is built, because of ranks, files or data."""

import gzip
import shutil
import subprocess
import sys
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
from training.config.checks import check_all_to_all, check_layout
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
