"""``python -m data.prepare`` on a user's own text: formats, the command that it prints, progress, the sample."""

import itertools
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from data import prepare
from data.config import DataConfig
from data.preparation import build, progress
from data.streaming.loader import PretrainingLoader
from data.streaming.validation import validation_batches
from data.tokenizer import Tokenizer, train_vocabulary
from tests.support.prepared import SMALL, read, read_file


def test_own_files_from_a_folder_to_the_command_that_trains_on_them(
    tmp_path: Path, make_texts: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of all kinds, a license of one's own, and a command whose every number fits."""
    texts = make_texts(120, seed=5)
    (tmp_path / "own" / "more").mkdir(parents=True)
    (tmp_path / "own/a.txt").write_text("\n".join(texts[:40]))
    (tmp_path / "own/more/b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[40:80]))
    (tmp_path / "c.txt").write_text("\n".join(texts[80:]))
    out = tmp_path / "my set"
    files = ["--files", str(tmp_path / "own"), str(tmp_path / "c.txt")]
    options = ["--source", "files", *files, *SMALL, "--license", "CC0 1.0", "--out", str(out)]
    assert prepare.main(options) == 0
    assert sorted(read(out / "train") + read(out / "validation")) == sorted(texts)
    description = json.loads((out / "dataset.json").read_text())
    assert description["license"] == "CC0 1.0" and str(tmp_path / "own") in description["origin"]
    *_, command = capsys.readouterr().out.splitlines()
    settings = dict(word.split("=", 1) for word in shlex.split(command)[4:])
    assert settings["model.vocab_size"] == "384" and settings["data.num_streams"] == "4"  # 200 + 100, in 128s
    assert prepare.main(options) == 0
    assert capsys.readouterr().out.splitlines()[-1] == command

    data = {key.removeprefix("data."): value for key, value in settings.items() if key.startswith("data.")}
    config = DataConfig.model_validate(data | {"num_streams": int(data["num_streams"]), "inputs_length": 256})
    tokenizer = Tokenizer(config.vocabulary)
    tokenizer.check_fits(int(settings["model.vocab_size"]))
    PretrainingLoader(config, tokenizer, rank=0, world_size=1, batch_size=8)
    wanted = int(settings["training.eval_examples"])
    if description["validation_tokens"] > 8 * 283:
        batches = validation_batches(config, tokenizer, rank=0, world_size=1, batch_size=8, num_batches=wanted // 8)
        assert len(batches) == wanted // 8


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"text": "one"}, {"text": "two"}]', "is a JSON array: one JSON object per line"),
        (
            '{"text": "one"},\n{"text": "two"},\n',
            "rows were skipped (2 malformed_json): each line must be one JSON",
        ),
        ('{"body": "one"}\n', "(1 missing_text): the object has no such key: set --text-column"),
        ("", "all rows were skipped (there are none): name other files"),
    ],
)
def test_text_that_cannot_be_read_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, words: str
) -> None:
    (tmp_path / "a.json").write_text(content)
    options = ["--source", "files", "--files", str(tmp_path / "a.json"), *SMALL, "--out", str(tmp_path / "out")]
    assert prepare.main(options) == 2
    error = capsys.readouterr().err
    assert words in error and str(tmp_path / "a.json") in error and error.count("\n") == 1


def test_files_that_are_not_there_name_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--source", "files", "--files", "none/*.txt", *SMALL, "--out", str(tmp_path / "out")]
    assert prepare.main(options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --files = 'none/*.txt' matches no file in /") and "data." not in error[13:]


def test_the_vocabulary_is_trained_on_a_bounded_sample(
    tmp_path: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the shuffled documents the first ones are taken: those of a set that small give the same vocabulary."""
    assert prepare.main([*SMALL, "--out", str(tmp_path / "all")]) == 0
    monkeypatch.setattr(build, "VOCABULARY_CHARACTERS", 5000)
    assert prepare.main([*SMALL, "--out", str(tmp_path / "some")]) == 0
    order = [read_file(path) for path in sorted((tmp_path / "all/train").iterdir())]
    texts = [text for row in itertools.zip_longest(*order) for text in row if text is not None]
    taken = next(n for n in range(len(texts) + 1) if sum(map(len, texts[:n])) >= 5000)
    train_vocabulary(texts[:taken], 200, tmp_path / "expected")
    models = [
        (tmp_path / folder / "spiece.model").read_bytes()
        for folder in ("some/vocabulary", "expected", "all/vocabulary")
    ]
    assert models[0] == models[1] != models[2]
    assert read(tmp_path / "all/train") == read(tmp_path / "some/train")


def test_progress_is_shown_without_a_terminal(
    tmp_path: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0001)
    assert prepare.main([*SMALL, "--out", str(tmp_path / "wiki")]) == 0
    error = capsys.readouterr().err
    assert "writing files of train: 4, done" in error and "counting tokens of documents: 90, done" in error
    assert re.search(r"^training the vocabulary on [\d,]+ characters of 90 documents, \d+ s$", error, re.MULTILINE)
