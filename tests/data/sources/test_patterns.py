"""Which files a user means by a path, a folder, a glob, braces or a list."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.config import DataConfig
from data.sources.patterns import expand_braces, find_files

NAMES = [
    "a.jsonl", "b.jsonl", "part-00.json", "part-01.json", "part-02.json",
    "data [v2] (final)/x.jsonl", "data [v2] (final)/y.jsonl", "with space, comma.txt",
    "odd/[1]*.jsonl", "odd/{0,1}.jsonl", "books/deep/c.txt", "books/a.txt.gz", "books/read.me", "books/.hidden.txt",
    "books/_temporary/d.txt", "spark/a.parquet/part-0.parquet", "spark/a.parquet/_SUCCESS", "spark/b.parquet",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in NAMES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("a.jsonl", ["a.jsonl"]),
        ("*.jsonl", ["a.jsonl", "b.jsonl"]),
        (["b.jsonl", "a.jsonl"], ["b.jsonl", "a.jsonl"]),
        (["part-*.json", "a.jsonl"], ["part-00.json", "part-01.json", "part-02.json", "a.jsonl"]),
        ("{b,a}.jsonl", ["b.jsonl", "a.jsonl"]),
        ("part-{00..01}.json", ["part-00.json", "part-01.json"]),
        ("part-0{0,2}.json", ["part-00.json", "part-02.json"]),
        ("part-0[01].json", ["part-00.json", "part-01.json"]),
        ("data [v2] (final)/*.jsonl", ["data [v2] (final)/x.jsonl", "data [v2] (final)/y.jsonl"]),
        ("data [v2] (final)/{y,x}.jsonl", ["data [v2] (final)/y.jsonl", "data [v2] (final)/x.jsonl"]),
        ("data [v2] (final)", ["data [v2] (final)/x.jsonl", "data [v2] (final)/y.jsonl"]),
        ("odd/[1]*.jsonl", ["odd/[1]*.jsonl"]),
        ("odd/{0,1}.jsonl", ["odd/{0,1}.jsonl"]),
        ("books", ["books/a.txt.gz", "books/deep/c.txt"]),
        ("books/", ["books/a.txt.gz", "books/deep/c.txt"]),
        ("books/**/*.txt", ["books/_temporary/d.txt", "books/deep/c.txt"]),
        ("spark/a.parquet", ["spark/a.parquet/part-0.parquet"]),
        (["spark/a.parquet", "spark/b.parquet"], ["spark/a.parquet/part-0.parquet", "spark/b.parquet"]),
        ("with space, comma.txt", ["with space, comma.txt"]),
        ("https://host/{a,b}-{1..2}.txt", [f"https://host/{x}-{n}.txt" for x in "ab" for n in (1, 2)]),
    ],
)
def test_what_is_named_is_found_in_order(folder: Path, patterns: Any, expected: list[str]) -> None:
    assert find_files("data.train_files", patterns) == expected
    remote = "https://" in str(patterns)
    if isinstance(patterns, str) and not remote:
        found = find_files("data.train_files", f"{folder}/{patterns}")
        assert found == [f"{folder}/{name}" for name in expected]


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        ("none/*.jsonl", ["data.train_files = 'none/*.jsonl' matches no file in {folder}", "data.prepare"]),
        (["a.jsonl", "none.txt"], ["data.train_files = 'none.txt' matches no file"]),
        ("a.jsonl,b.jsonl", ["matches no file", "data.train_files=[a.jsonl,b.jsonl]"]),
        ("spark/*.parquet", ["spark/a.parquet is a folder, not a file", "name the folder itself"]),
        (["a.jsonl", "*.jsonl"], ["names a.jsonl twice"]),
        ("books/read.me", ["books/read.me has an unknown file ending"]),
        ("empty", ["the folder holds no file with a known ending"]),
    ],
)
def test_what_is_not_found_is_one_line(folder: Path, patterns: Any, words: list[str]) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^data\.train_files = ") as caught:
        find_files("data.train_files", patterns)
    assert all(word.replace("{folder}", str(folder)) in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(name=st.text(alphabet="ab[]{},.*?! \u00e9", min_size=1, max_size=12).map(lambda name: f"x{name}.txt"))
def test_a_name_that_exists_is_taken_as_it_is(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("names")
    for other in ("xa.txt", "xb.txt", name):
        (folder / other).write_text("x")
    (folder / f"{name}.d").mkdir()
    (folder / f"{name}.d" / "inside.txt").write_text("x")
    assert find_files("k", str(folder / name)) == [str(folder / name)]
    assert find_files("k", str(folder / f"{name}.d")) == [str(folder / f"{name}.d" / "inside.txt")]
    assert find_files("k", str(folder / f"{name}.d" / "*.txt")) == [str(folder / f"{name}.d" / "inside.txt")]


def test_braces_expand_as_in_a_shell() -> None:
    assert expand_braces("a{1,2}{x,y}") == ["a1x", "a1y", "a2x", "a2y"]
    assert expand_braces("{08..10}") == ["08", "09", "10"] and expand_braces("{2..0}") == ["2", "1", "0"]
    assert expand_braces("{a}") == ["{a}"] and expand_braces("{a,}b") == ["ab", "b"]
    assert expand_braces("{a,b{1..2}}") == ["a", "b1", "a", "b2"]  # find_files takes "a" once


def test_home_is_expanded_and_wrong_values_are_refused() -> None:
    home = os.path.expanduser("~")
    assert DataConfig(train_files=["~/a.txt", "b.txt"], vocabulary="~/v").train_files == [f"{home}/a.txt", "b.txt"]
    assert DataConfig(vocabulary="~/v").vocabulary == f"{home}/v"
    values: list[Any] = ["", [], [""], 3, ["a", 3], None]
    for value in values:
        with pytest.raises(ValidationError, match="is not a file, a folder, a pattern or a URL, nor a list of them"):
            DataConfig(train_files=value)
