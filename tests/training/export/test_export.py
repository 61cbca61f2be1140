"""An exported run: what it promises outside this project, in a process that knows nothing of it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer, dynamic_module_utils

from common.exit_codes import USER_ERROR
from common.project import ROOT
from data.tokenizer import MODEL_FILE, Tokenizer
from model.config import StMoeConfig
from model.st_moe import StMoeForConditionalGeneration
from model.standalone.save import MODELING_FILE, modeling_code
from tests.support.launch import python
from tests.support.small import small_config
from training.checkpoint.resume import read_checkpoint
from training.config.errors import ConfigError
from training.config.run import validate
from training.export.export import VOCABULARY_KEY, export
from training.export.serving import served
from training.export.weights import read_model
from training.run.folder import RunFolder
from training.run.kept_inputs import UNKNOWN, keep_inputs, texts_of, vocabulary_of

CODE_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
EXAMPLES = """
import sys
assert not {name for name in sys.modules if name.partition(".")[0] in ("model", "training", "data", "deepspeed")}
"""


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    folder = trained.parent.parent / "exported"
    export(trained, folder, torch.float32)
    return folder


def test_the_card_of_an_export_runs_where_nothing_of_this_project_is(exported: Path, tmp_path: Path):
    copy = shutil.copytree(exported, tmp_path / "elsewhere")
    (block,) = CODE_BLOCK.findall((copy / "README.md").read_text())
    environment = {"HF_HOME": str(tmp_path / "cache"), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-W", "error::UserWarning", "-c", block + EXAMPLES]
    result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.startswith("<pad>")
    assert "[transformers]" not in result.stderr and "Warning" not in result.stderr


def test_the_card_says_how_the_model_was_trained(exported: Path, trained: Path):
    card = (exported / "README.md").read_text()
    summary = json.loads((trained / "summary.json").read_text())
    for words in (
        f"| parameters | {summary['parameters_total']:,} |", "| steps | 2 |", f"| tokens | {summary['tokens']:,} |",
        f"nats per target token | {summary['validation_cross_entropy']:.4f} |",
        f"unigram model | {summary['unigram_cross_entropy']:.4f} |", f"license: {UNKNOWN}", "Dropless: every token",
    ):  # fmt: skip
        assert words in card, words
    section = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert validate(section) == validate(read_checkpoint(trained).state.config)
    generation = json.loads((exported / "generation_config.json").read_text())
    assert {key: generation[key] for key in ("pad_token_id", "eos_token_id", "decoder_start_token_id")} == {
        "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
    }  # fmt: skip


def test_the_code_of_the_documentation_runs(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported, "exported/tiny")
    values: dict[str, Any] = {}
    for block in CODE_BLOCK.findall((ROOT / "docs" / "export.md").read_text()):
        exec(block.replace("report_to=[]", "report_to=[], use_cpu=True, disable_tqdm=True"), values)
    assert values["trainer"].state.global_step == 3
    assert (tmp_path / "exported" / "tuned" / MODELING_FILE).read_text() == modeling_code()


def test_every_token_is_served_whatever_stands_beside_it(exported: Path):
    """Greedy and beam search, at every batch size, with and without the cache."""
    model = StMoeForConditionalGeneration.from_pretrained(exported).eval()
    assert (model.config.capacity, model.config.second_policy) == ("dropless", "all")
    tokenizer = AutoTokenizer.from_pretrained(exported)
    texts = [" ".join(["kada lone mipo"] * (1 + i % 3) + ["<extra_id_0>"] + ["nu"] * i) for i in range(8)]

    def generate(size: int, **options: Any) -> list[str]:
        found = []
        for start in range(0, len(texts), size):
            inputs = tokenizer(texts[start : start + size], return_tensors="pt", padding=True)
            output = model.generate(**inputs, max_new_tokens=8, do_sample=False, **options)
            found += tokenizer.batch_decode(output, skip_special_tokens=False)
        return [re.sub(r"(<pad>)+$", "", text) for text in found]

    for beams in (1, 4):
        alone = generate(1, num_beams=beams)
        for size, cache in ((8, True), (3, False)):
            assert generate(size, num_beams=beams, use_cache=cache) == alone


@pytest.mark.parametrize(
    ("model", "routing", "expected", "words"),
    [
        ({}, "dropless", ("dropless", "all"), "does not depend on the texts beside it"),
        ({}, "trained", ("factor", "random"), "depends on the texts beside it"),
        ({"second_policy": "threshold"}, "dropless", ("dropless", "threshold"), "Trained with capacity='factor'"),
        ({"batch_prioritized": True}, "dropless", ("dropless", "all"), "batch_prioritized=True"),
        ({"gating": "flaxformer"}, "dropless", ("dropless", "random"), "does not depend"),
        ({"gating": "expert_choice"}, "dropless", ("factor", "random"), "each expert chooses among the tokens"),
        ({"capacity": "dropless"}, "trained", ("dropless", "random"), "depends on chance"),
        ({"capacity": "dropless", "second_policy": "all"}, "trained", ("dropless", "all"), "depends on nothing else"),
        ({"num_experts": 0}, "dropless", ("factor", "random"), "Dense"),
    ],
)
def test_how_a_model_routes_when_exported(model: dict[str, Any], routing: Any, expected: tuple, words: str):
    config, text = served({"num_experts": 4} | model, routing)
    assert (config.capacity, config.second_policy) == expected
    assert words in text
    StMoeConfig(**config.to_dict())


def test_a_checkpoint_is_read_as_the_model_that_is_exported(trained: Path, exported: Path):
    loaded = StMoeForConditionalGeneration.from_pretrained(exported)
    model = read_model(read_checkpoint(trained).folder, loaded.config)
    assert not model.training
    for (name, mine), theirs in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_a_moved_run_has_its_vocabulary_with_it(trained: Path, corpus: dict[str, Any], tmp_path: Path):
    moved = shutil.copytree(trained, tmp_path / "moved")
    state = read_checkpoint(moved).state
    config = validate(state.config | {"data": state.config["data"] | {"vocabulary": "/nowhere"}})
    fingerprint = state.data["identity"][VOCABULARY_KEY]
    assert vocabulary_of(moved, config, fingerprint).folder == moved / "vocabulary"

    (moved / "vocabulary" / MODEL_FILE).unlink()  # a run of an older version
    with pytest.raises(ConfigError, match="name its folder with --vocabulary"):
        vocabulary_of(moved, config, fingerprint)
    given = Path(corpus["vocabulary"])
    assert vocabulary_of(moved, config, fingerprint, given).folder == given
    with pytest.raises(ConfigError, match="is no longer that of the run"):
        vocabulary_of(moved, config, "other", given)
    assert vocabulary_of(moved, validate(state.config), fingerprint).folder == given

    result = python("convert.py", "export", str(moved), "--output", str(tmp_path / "out"), "--vocabulary", "/nowhere")
    assert result.returncode == USER_ERROR
    assert result.stderr.startswith("error: --vocabulary = '/nowhere' has no spiece.model")
    assert result.stderr.count("\n") == 1


def test_the_origin_of_the_text_is_kept(corpus: dict[str, Any], tmp_path: Path):
    text = tmp_path / "set" / "train"
    text.mkdir(parents=True)
    described = {"origin": "a library", "license": "CC0", "train_documents": 7, "recipe": {"source": "hub"}}
    config = small_config(tmp_path, data=corpus | {"train_files": f"{text}/*.json.gz"})
    tokenizer, run = Tokenizer(corpus["vocabulary"]), tmp_path / "run"
    keep_inputs(run, config, tokenizer)
    assert texts_of(run, config) == [{"origin": f"{text}/*.json.gz", "license": UNKNOWN}]
    (text.parent / "dataset.json").write_text(json.dumps(described))
    keep_inputs(run, config, tokenizer)
    assert texts_of(run, config) == [{key: described[key] for key in ("origin", "license", "train_documents")}]
    (text.parent / "dataset.json").unlink()  # moved away: what is known stays
    keep_inputs(run, config, tokenizer)
    assert texts_of(run, config)[0]["license"] == "CC0"
    (text.parent / "dataset.json").write_text(json.dumps(described | {"recipe": {"source": "files"}}))
    assert texts_of(tmp_path / "another", config)[0]["license"] == UNKNOWN
    hub = small_config(tmp_path, data={"source": "hub"})
    assert texts_of(tmp_path / "another", hub)[0]["license"].startswith("ODC-BY")


@pytest.mark.parametrize("pattern", ["", "/", "/*.json.gz"])
def test_a_domain_of_a_data_set_has_its_own_origin(corpus: dict[str, Any], tmp_path: Path, pattern: str):
    domain = {"source": "a package", "license": "CC0", "train": {"documents": 3}}
    described = {"origin": "all", "license": "several", "train_documents": 7, "domains": {"code": domain}}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    mixture = [{"name": n, "weight": 1, "files": f"{tmp_path}/train/{n}{pattern}"} for n in ("code", "prose")]
    config = small_config(tmp_path, data=corpus | {"mixture": mixture})
    assert texts_of(tmp_path / "run", config) == [
        {"origin": "code: a package", "license": "CC0", "train_documents": 3},
        {"origin": "all", "license": "several", "train_documents": 7},
    ]


def test_the_command_of_a_moved_run_names_its_place_and_its_vocabulary(trained: Path, tmp_path: Path):
    assert "data.vocabulary" not in RunFolder(trained).train_command(1)
    moved = shutil.copytree(trained, tmp_path / "moved")
    config = moved / "config.yaml"
    values = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(values | {"data": values["data"] | {"vocabulary": "/nowhere"}}))
    command = RunFolder(moved).train_command(2, "--resume")
    assert f"training.output_dir={tmp_path} training.name=moved data.vocabulary={moved}/vocabulary --resume" in command
    (config.parent / "vocabulary").rename(tmp_path / "elsewhere")
    assert "data.vocabulary" not in RunFolder(moved).train_command(2, "--resume")
