"""Values are what users typed, wherever a key is text; what YAML would guess is never taken silently."""

from pathlib import Path

import pytest

from common.project import ROOT
from training.config.errors import ConfigError
from training.config.run import load_config

TINY = ROOT / "configs" / "tiny.yaml"
TEXTS = (
    "*.json.gz", "[ab]*.gz", "{00..03}.gz", "a#b.gz", "a: b", "no", "yes", "on", "true", "2024", "2024-05-01", "1e-3",
    "010", "1:30", "@x", "&x", "!x", "%x", "null", "~x/../x", "-", "- a", "a=b", "a,b", "0x10", "ünï",
)  # fmt: skip


def with_line(folder: Path, section: str, line: str) -> Path:
    """Write tiny.yaml with one more line of a section."""
    file = folder / "config.yaml"
    file.write_text(TINY.read_text().replace(f"{section}:\n", f"{section}:\n  {line}\n", 1))
    return file


@pytest.mark.parametrize("text", TEXTS)
def test_text_on_the_command_line_is_text(text: str):
    assert load_config(TINY, [f"data.text_column={text}"]).data.text_column == text
    for quoted in (f'"{text}"', f"'{text}'"):
        assert load_config(TINY, [f"data.text_column={quoted}"]).data.text_column == text


@pytest.mark.parametrize(
    "text", ["no", "yes", "2024", "2024-05-01", "1e-3", "010", "1:30", "null", '"[ab]*.gz"', "'no'"]
)
def test_text_in_a_file_is_text(text: str, tmp_path: Path):
    config = load_config(with_line(tmp_path, "data", f"text_column: {text}"))
    assert config.data.text_column == text.strip("'\"")


def test_texts_that_may_be_absent():
    assert load_config(TINY, ["data.hub_config=no"]).data.hub_config == "no"
    for absent in ("null", "~", ""):
        assert load_config(TINY, [f"data.hub_config={absent}"]).data.hub_config is None
    assert load_config(TINY, ['data.hub_config="null"']).data.hub_config == "null"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.seed=010", "training.seed = 010: a leading zero means base 8 to some readers: write 10"),
        ("training.steps=1e3", "training.steps = 1e3: must be a valid integer: write 1000"),
        ("training.steps=1:30", "training.steps = '1:30': input should be a valid integer"),
        ("training.steps='5'", "training.steps = '5': input should be a valid integer; write 5 without quotes"),
        ("optimizer.learning_rate='1e-3'", "'1e-3': input should be a valid number; write 1e-3 without quotes"),
        ("optimizer.learning_rate=0,001", "'0,001': input should be a valid number; write 0.001"),
        ("optimizer.learning_rate=inf", "optimizer.learning_rate = inf: must be a finite number"),
        ("model.router_z_coefficient=nan", "model.router_z_coefficient = nan: must be a finite number"),
        ("training.seed=", "training.seed has no value"),
        ("training.name=", "training.name has no value"),
        ("training.activation_checkpointing=1", "input should be a valid boolean; write true"),
        ("training.activation_checkpointing='true'", "input should be a valid boolean; write true without quotes"),
        ("data.mixture=[{", "data.mixture = \\[{: line 1, column 3: not YAML"),
        (
            "training.output_dir=$NOT_SET/runs",
            r"training.output_dir = \$NOT_SET/runs: the environment variable NOT_SET is",
        ),
        ("training.name=${NOT_SET}", r"training.name = \${NOT_SET}: the environment variable NOT_SET is not set"),
        ("training.name=${training.other}", r"training.name: Interpolation key 'training.other' not found"),
    ],
)
def test_values_with_two_meanings_or_none(override: str, words: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(ConfigError, match=words) as error:
        load_config(TINY, [override])
    assert "\n" not in str(error.value)


def test_numbers_and_switches_as_they_are_usually_typed():
    t = load_config(TINY, ["training.steps=1_000", "training.save_in_background=off", "training.seed=0x10"]).training
    assert (t.steps, t.save_in_background, t.seed) == (1000, False, 16)
    config = load_config(TINY, ["optimizer.learning_rate=.5", "model.dropout_rate=0", "training.timeout_seconds=60"])
    assert (config.optimizer.learning_rate, config.model.model_dump()["dropout_rate"]) == (0.5, 0)
    assert load_config(TINY, ["training.steps=5 # five"]).training.steps == 5


def test_variables_and_other_keys_in_text(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("HOME", "/home/me")
    for typed in ("$SCRATCH/runs", "${SCRATCH}/runs", "${oc.env:SCRATCH}/runs"):
        assert load_config(TINY, [f"training.output_dir={typed}"]).training.output_dir == "/scratch/me/runs"
    assert load_config(TINY, ["training.output_dir=~/runs"]).run_dir == Path("/home/me/runs/tiny")
    assert load_config(TINY, ["training.name=tiny-${training.steps}"]).training.name == "tiny-1200"


def test_a_file_that_is_read_again_is_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, again = (load_config(TINY, overrides) for overrides in (["model.d_ff=7"], []))
    assert (first.architecture().d_ff, again.architecture().d_ff) == (7, load_config(TINY).architecture().d_ff)
    for encoding in ("utf-8", "utf-16"):
        file = with_line(tmp_path, "data", "text_column: ${COLUMN}")
        file.write_text(file.read_text(), encoding=encoding)
        for value in ("one", "two"):
            monkeypatch.setenv("COLUMN", value)
            assert load_config(file).data.text_column == value


def test_an_item_of_a_list_can_be_set():
    mixture = "data.mixture=[{name: a, weight: 1, files: x}, {name: 2024, weight: 2, files: '*.gz'}]"
    first, second = load_config(TINY, [mixture, "data.mixture[0].files=*.txt", "data.mixture[1].weight=3"]).data.mixture
    assert (first.files, second.name, second.weight, second.files) == ("*.txt", "2024", 3, "*.gz")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("data: {train_files: *.gz}", "line 1, column 22: not YAML: .*: quote a value that begins with"),
        ("data:\n  train_files: [ab]*.gz", "line 2, .*: quote a value that begins with"),
        ("data: {train_files: @x}", "line 1, .*: quote a value that begins with"),
        ("data:\n\tseed: 1", "line 2, column 1: not YAML: found character"),
        ("model: {d_model: 1", "line 1, column 19: not YAML"),
        ("- a", "must hold the sections model, data"),
        ("text", "must hold the sections model, data"),
        ("model: {vocab_size: 1}\nmodel: {d_model: 2}", "line 2: model is given twice"),
        ("training: {steps: 5, steps: 6}", "line 1: training.steps is given twice"),
        ("training: {seed: 010}", "training.seed = 010: a leading zero"),
        ("a: b\n---\nc: d", "line 2, column 1: not YAML: but found another document"),
        ("training:\n  <<: 5", "training.<<: expected a mapping"),
    ],
)
def test_files_that_cannot_be_understood(content: str, words: str, tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=rf"^--config {file}: {words}") as error:
        load_config(file)
    assert "\n" not in str(error.value)


def test_encodings(tmp_path: Path):
    file = tmp_path / "config.yaml"
    text = TINY.read_text()
    for content in (text.encode("utf-8-sig"), text.encode("utf-16"), text.replace("\n", "\r\n").encode()):
        file.write_bytes(content)
        assert load_config(file) == load_config(TINY)
    file.write_bytes("model: {vocab_size: 512} # café".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8 text at byte 30: save it as UTF-8"):
        load_config(file)


def test_empty_sections_and_merged_keys(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text("model: &m {vocab_size: 128, d_model: 64}\ndata:\ntraining:\n  # name: x\nguard: {}\n")
    assert load_config(file).model.model_dump()["d_model"] == 64
    file.write_text("model:\n  <<: {d_model: 64, d_ff: 32}\n  d_model: 16\n")
    model = load_config(file).model.model_dump()
    assert (model["d_model"], model["d_ff"]) == (16, 32)


def test_config_files_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.yaml").write_text(TINY.read_text())
    for name, words in (
        ("tiny.yaml", rf"^--config tiny\.yaml: no such file in {tmp_path}; did you mean configs/tiny\.yaml\?$"),
        ("tiny", r"did you mean configs/tiny\.yaml\?$"),
        ("other.yaml", rf"^--config other\.yaml: no such file in {tmp_path}; this project's are in {ROOT}/configs$"),
        ("/no/other.yaml", r"^--config /no/other\.yaml: no such file; this"),
        ("configs", r"^--config configs is a folder: name a file"),
        ("configs/tiny.yaml/x", r"^--config configs/tiny.yaml/x cannot be read: Not a directory$"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_config(name)


def test_deepspeed_files_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from training.config.deepspeed import read_deepspeed_file

    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    monkeypatch.chdir(work)
    config = with_line(home, "training", "deepspeed_config: mine.json")
    (home / "mine.json").write_text('{"zero_optimization": {"stage": 2}}')
    found = load_config(config).training.deepspeed_config
    assert found == str(home / "mine.json")
    (work / "mine.json").write_text('{"zero_optimization": {"stage": 3}}')
    assert load_config(config).training.deepspeed_config == "mine.json"
    assert read_deepspeed_file("mine.json")["zero_optimization"]["stage"] == 3
    assert read_deepspeed_file("ds_configs/zero2.json")["zero_optimization"]["stage"] == 2
    with pytest.raises(ConfigError, match=rf"no such file in {work}; this project's are in {ROOT}/ds_configs$"):
        read_deepspeed_file("none.json")
