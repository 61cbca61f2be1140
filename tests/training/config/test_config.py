"""Mistakes in a configuration: one line that names key, value and fix."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from common.project import ROOT
from data.config import MixtureSource
from training.config.errors import ConfigError
from training.config.help import describe_keys
from training.config.monitor import MonitorConfig, ProfileConfig
from training.config.run import SECTIONS, load_config

BELOW_TRAINING = {"monitor": MonitorConfig, "profile": ProfileConfig}  # sections inside of a section
TINY = str(ROOT / "configs" / "tiny.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_of_the_project_is_valid(path: Path):
    load_config(path)


def test_overrides_win_and_keep_their_types():
    config = load_config(TINY, ["training.steps=7", "optimizer.learning_rate=1e-3", "model.num_decoder_layers=null"])
    assert config.training.steps == 7
    assert config.optimizer.learning_rate == 1e-3
    assert config.st_moe_config().num_decoder_layers == config.st_moe_config().num_layers
    assert load_config(TINY, ["training.steps=7", "training.steps=8"]).training.steps == 8


def test_model_section_reaches_the_model():
    config = load_config(TINY, ["model.top_n=1", "model.router_z_coefficient=0"]).st_moe_config()
    assert (config.top_n, config.router_z_coefficient, config.num_experts) == (1, 0, 8)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.stepz=5", ["training.stepz = 5", "unknown key", "did you mean training.steps?"]),
        ("trainin.steps=5", ["trainin: unknown section, with steps", "did you mean training?"]),
        ("model.layers=5", ["model.layers = 5", "unknown key"]),
        ("training.monitor.routng=false", ["training.monitor.routng = False", "mean training.monitor.routing?"]),
        ("training.routing=false", ["training.routing = False: unknown key", "mean training.monitor.routing?"]),
        ("training.monitor.routing=0", ["training.monitor.routing = 0", "valid boolean", "write false"]),
        ("training.monitor.examples=-1", ["training.monitor.examples = -1", "greater than or equal to 0"]),
        ("training.monitor=false", ["training.monitor = 'false': has keys of its own", "training.monitor.routing=…"]),
        ("monitor.routing=false", ["monitor: unknown section, with routing", "did you mean training.monitor?"]),
        ("training.steps=many", ["training.steps = 'many'", "valid integer"]),
        ("training.steps=1.5", ["training.steps = 1.5", "valid integer"]),
        ("training.steps=0", ["training.steps = 0", "greater than or equal to 1"]),
        ("training.activation_checkpointing=1", ["training.activation_checkpointing = 1", "valid boolean"]),
        ("training.precision=fp16", ["training.precision = fp16", "overflows", "bf16 or fp32"]),
        ("training.precision=int8", ["training.precision = 'int8'", "'fp32', 'bf16' or 'bf16_autocast'"]),
        ("training.name=../elsewhere", ["training.name = '../elsewhere': begin with a letter", "training.output_dir"]),
        ("model.d_model=wide", ["model.d_model = 'wide'", "valid integer"]),
        ("model.top_n=9", ["model.top_n = 9", "at most model.num_experts = 8"]),
        ("model.num_experts=1", ["model.num_experts = 1", "set 0 for a dense one"]),
        ("model.sparse_step=9", ["model.sparse_step = 9", "lower"]),
        (
            "model.decoder_gating=expert_choice",
            ["model.decoder_gating = expert_choice", "future tokens", "set top_n or"],
        ),
        ("model.gating=hash", ["model.gating = 'hash'", "'top_n', 'flaxformer' or 'expert_choice'"]),
        ("model.feed_forward=swiglu", ["model.feed_forward = 'swiglu'", "'geglu' or 'relu'"]),
        ("data.noise_density=1.5", ["data.noise_density = 1.5", "less than 1"]),
        ("optimizer.beta2=0.98", ["optimizer.beta2 = 0.98", "optimizer.name = adafactor", "remove it", "adamw"]),
        ("optimizer.name=sgd", ["optimizer.name = 'sgd'", "'adafactor', 'adamw' or 'adamw_8bit'"]),
        ("data.mixture=[{weight: 1, files: a.txt}]", ["data.mixture[0].name is missing"]),
        ("data.mixture=[{name: a, weight: 0, files: a.txt}]", ["data.mixture[0].weight = 0", "greater than 0"]),
        ("data.mixture=[{name: a, weight: x, files: a.txt}]", ["data.mixture[0].weight = 'x'", "valid"]),
        (
            "data.mixture=[{name: a, weight: 1, flies: x}]",
            ["data.mixture[0].flies = 'x'", "mean data.mixture[0].files?"],
        ),
        ("data.mixture=[{name: a, weight: 1}]", ["data.mixture[0]: source 'a' has no files", "set files"]),
        (
            "data.mixture=[{name: a, weight: 1, files: x},{name: a, weight: 1, files: y}]",
            ["data.mixture: two sources are named 'a'"],
        ),
        ("data.mixture=c4", ["data.mixture = 'c4'", "valid list"]),
        ("data.shuffle_buffer=100", ["data.shuffle_buffer = 100", "set data.shuffle_buffer=512"]),
        ("data.hub_revision=main", ["data.hub_revision = 'main' can change", "40 digits of a commit"]),
        ("data.source=web", ["data.source = 'web'", "'files' or 'hub'"]),
        ("data.objective=mlm", ["data.objective = 'mlm'", "'span_corruption', 'prefix_lm' or 'tasks'"]),
        (
            "optimizer.schedule=rsqrt",
            ["optimizer.decay_steps = 1200", "optimizer.schedule = rsqrt", "linear or cosine"],
        ),
        ("steps=5", ["'steps=5'", "section.key=value", "did you mean training.steps=5?"]),
        ("training.learning_rate=1", ["training.learning_rate = 1: unknown key", "mean optimizer.learning_rate?"]),
        ("model.learning_rat=1", ["model.learning_rat = 1: unknown key", "did you mean optimizer.learning_rate?"]),
        ("steps.training=1", ["steps: unknown section, with training; did you mean training.steps?"]),
        ("--training.steps=5", ["write training.steps=5 in one word, without blanks or dashes"]),
        ("training.steps =5", ["write training.steps=5 in one word, without blanks"]),
        ("=", ["write training.steps=100 in one word, without blanks"]),
        ("training={steps: 5}", ["set its keys, such as training.name=…"]),
        ("training.name.first=x", ["override training.name.first=x: training.name has no keys of its own"]),
        ("data.mixture[0].weight=2", ["override data.mixture[0].weight=2: data.mixture has 0 items"]),
        ("training.steps", ["'training.steps'", "section.key=value"]),
    ],
)
def test_one_line_names_key_value_and_fix(override: str, words: list[str]):
    with pytest.raises(ConfigError) as error:
        load_config(TINY, [override])
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


def test_keys_of_another_optimizer_and_decays_without_steps():
    def refused(*overrides: str) -> str:
        with pytest.raises(ConfigError, match=r"^[^\n]+$") as error:
            load_config(TINY, list(overrides))
        return str(error.value)

    adamw = refused("optimizer.name=adamw", "optimizer.update_clipping=0.1")
    assert "optimizer.update_clipping = 0.1 is not used with optimizer.name = adamw" in adamw
    cosine = ["optimizer.schedule=cosine", "optimizer.warmup_steps=20", "training.steps=20"]
    assert "optimizer.decay_steps = 20 leaves" in refused(*cosine, "optimizer.decay_steps=20")
    assert "training.steps = 20 leaves" in refused(*cosine, "optimizer.decay_steps=null")
    assert load_config(TINY, [*cosine, "optimizer.decay_steps=21"]).optimizer.decay_steps == 21


def test_another_hub_data_set_needs_its_own_revision():
    overrides = ["data.source=hub", "data.hub_dataset=allenai/dolma"]
    with pytest.raises(ConfigError, match=r"^data\.hub_dataset = 'allenai/dolma' needs its own hub_revision, [^\n]+$"):
        load_config(TINY, overrides)
    config = load_config(TINY, [*overrides, f"data.hub_revision={'ab' * 20}", "data.hub_config=null"])
    assert config.data.hub_config is None


def test_a_mixture_is_read_from_the_file_with_its_own_keys(tmp_path: Path):
    """As written out by a run, too; the older name of the source of files is still understood."""
    text = (
        Path(TINY)
        .read_text()
        .replace(
            "data:\n",
            "data:\n  mixture:\n  - {name: web, weight: 2, source: hub, hub_config: de}\n"
            "  - {name: wiki, weight: 0.5, source: local, files: runs/data/wikipedia/train/*.json.gz}\n",
        )
    )
    (tmp_path / "mixed.yaml").write_text(text)
    config = load_config(tmp_path / "mixed.yaml")
    web, wiki = config.data.train_sources()
    assert (web.name, web.weight, web.setting, web.keys.hub_config) == ("web", 2.0, "data.mixture[0].hub_dataset", "de")
    assert (wiki.name, wiki.weight, wiki.setting) == ("wiki", 0.5, "data.mixture[1].files")
    assert config.data.validation_sources()[0].setting == "data.validation_files"
    OmegaConf.save(OmegaConf.create(config.model_dump()), tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == config


def test_domains_of_validation_text_are_a_mapping_in_the_file_and_on_the_command_line(tmp_path: Path):
    """Also in what a run writes out; braces of a pattern stay a pattern."""
    text = Path(TINY).read_text()
    text = re.sub("  validation_files: .*", "  validation_files: {code: 010/, no: [a.jsonl, b.jsonl]}", text)
    (tmp_path / "domains.yaml").write_text(text)
    config = load_config(tmp_path / "domains.yaml")
    assert config.data.validation_files == {"code": "010/", "no": ["a.jsonl", "b.jsonl"]}
    assert [source.setting for source in config.data.validation_sources()] == [
        "data.validation_files[code]", "data.validation_files[no]"
    ]  # fmt: skip
    OmegaConf.save(OmegaConf.create(config.model_dump()), tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == config
    assert load_config(TINY, ["data.validation_files={code: 010/, no: [a.jsonl, b.jsonl]}"]).data == config.data
    assert load_config(TINY, ["data.validation_files={en,de}"]).data.validation_files == "{en,de}"
    assert load_config(TINY, ["data.validation_files=[a.jsonl,b.jsonl]"]).data.validation_domains() == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.validation_files={a/b: x.jsonl}", "'a/b' cannot name a domain"),
        ("data.validation_files={code: {more: x}}", "{'more': 'x'} is not a file"),
        ("data.validation_files={code: []}", "[] is not a file"),
    ],
)
def test_mistakes_in_domains_are_one_line(override: str, words: str):
    with pytest.raises(ConfigError, match=r"^data\.validation_files[^\n]*$") as caught:
        load_config(TINY, [override])
    assert words in str(caught.value)


def test_domains_are_not_of_the_hub():
    with pytest.raises(ConfigError, match=r"^data.validation_files names files of domains, but data.source = hub"):
        load_config(TINY, ["data.source=hub", "data.validation_files={code: x.jsonl}"])


def test_files_that_are_no_config(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no such file"):
        load_config(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: {d_model: 1\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml: [^\n]+$"):
        load_config(broken)
    broken.write_text("- a list\n")
    with pytest.raises(ConfigError, match=r"^[^\n]+$"):
        load_config(broken)
    broken.write_text("training: {steps: 5}\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml has no section model: add it, or name another file$"):
        load_config(broken)
    broken.write_text('{"zero_optimization": {"stage": 3}}')
    with pytest.raises(ConfigError, match=r"broken\.yaml is a DeepSpeed file: name it with training.deepspeed_config="):
        load_config(broken)
    broken.write_text("modelx: {d_model: 8}\n")
    with pytest.raises(ConfigError, match=r"^modelx: unknown section, with d_model; did you mean model\?"):
        load_config(broken)


def test_help_lists_every_key_with_meaning_and_default():
    text = describe_keys()
    below = {f"training.{name}": model for name, model in BELOW_TRAINING.items()}
    for section, fields in (SECTIONS | below).items():
        for name, field in fields.model_fields.items():
            assert f"{section}.{name}" in below or f"  {section}.{name} (" in text
            assert field.description, f"{section}.{name} has no description"
    assert "model.router_z_coefficient (float, default 0.001)" in text
    assert "data.train_files (str | list, default runs/data/" in text
    assert "Annotated" not in text and "typing" not in text
    for name, field in MixtureSource.model_fields.items():
        assert f"  data.mixture[].{name} (" in text
        assert field.description


def test_keys_below_a_key_merge_with_the_defaults_beside_them(tmp_path: Path):
    assert load_config(TINY, ["training.monitor.examples=0"]).training.monitor == MonitorConfig(examples=0)
    file = tmp_path / "config.yaml"
    file.write_text(Path(TINY).read_text().replace("training:\n", "training:\n  monitor: {routing: no}\n"))
    monitor = load_config(file, ["training.monitor.pictures=false"]).training.monitor
    assert monitor == MonitorConfig(routing=False, pictures=False)
