"""The table of tasks fine-tuned alone and as a mixture, from rows of several calls of the study."""

from pathlib import Path
from typing import Any

import pytest

from studies.finetuning import by_task
from studies.results.rows import RUN, append_row

BASELINES = {"sst2": {"majority": 49.0, "bag_of_words": 80.5}, "hypernym": {"majority": 0.5, "rule": 33.0}}


def row(key: str, scores: dict[str, float], seed: int = 0, **more: Any) -> dict[str, Any]:
    tasks = {
        name: {"score": score, "generated": {}, "likeliest": {}, "examples": 872, "baselines": BASELINES[name]}
        for name, score in scores.items()
    }
    return {
        "kind": RUN, "key": key, "seed": seed, "steps": 1500, "batch": 16, "model": "sparse", "weights": "ab12",
        "asked": {"tasks": list(scores), "split": "test", "limit": None, "answers": "generated"}, "tasks": tasks,
        "device": "a processor", "ranks": 1, "jobs": 1, "git_commit": "0" * 40, "date": "2026-01-01 00:00",
        "load_average": 1.0, "status": "stable",
    } | more  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    for seed, score in enumerate((66.0, 68.0, 70.0)):
        append_row(path, row("alone", {"sst2": score}, seed))
    risen: dict[str, Any] = {"status": "diverged", "diverged_at": 280, "reason": "a window's median 3.61 is more"}
    append_row(path, row("scratch", {"sst2": 52.0}, weights=None, **risen))
    append_row(path, row("mixture", {"sst2": 64.0, "hypernym": 2.5}, batch=64, steps=8000))
    append_row(path, row("word", {"hypernym": 3.0}, steps=4000))
    failed = row("broken", {}, 1, status="diverged")
    append_row(path, failed)
    return path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["by_task", *map(str, arguments)])
    return by_task.main()


def test_a_line_for_each_configuration_and_each_baseline(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Means and standard errors are worked by hand: 66, 68, 70 have mean 68 and error 2 / sqrt(3)."""
    assert call(monkeypatch, "--rows", file) == 0  # its only split
    printed = capsys.readouterr().out.splitlines()
    lines = [line for line in printed if line.startswith("|")]
    assert lines[0].endswith("| sst2, 872 (↑) | hypernym, 872 (↑) |")
    assert lines[2:] == [
        "| sst2 | sparse | pretrained | 16 x 1,500 | 0, 1, 2 | 68.0 ± 1.2 | - |",
        "| sst2 | sparse | random | 16 x 1,500 | 0 | 52.0 | - |",
        "| hypernym | sparse | pretrained | 16 x 4,000 | 0 | - | 3.0 |",
        "| sst2 + hypernym | sparse | pretrained | 64 x 8,000 | 0 | 64.0 | 2.5 |",
        "| majority | - | - | - | - | 49.0 | 0.5 |",
        "| bag of words | - | - | - | - | 80.5 | - |",
        "| rule | - | - | - | - | - | 33.0 |",
    ]
    assert printed[-1].endswith("which count all the same (`reason` in the rows): 1 of sst2.")


def test_the_section_of_a_document_is_written_from_the_rows(file: Path, monkeypatch: pytest.MonkeyPatch):
    document = file.with_name("page.md")
    options = ["--rows", file, "--split", "test", "--report", "--document", document]
    begin = f"<!-- finetuning.by_task: --rows {file} --split test -->"
    document.write_text(f"before\n\n{begin}\n<!-- finetuning.by_task ends -->\n\nafter\n")
    assert call(monkeypatch, *options) == 0
    written = document.read_text()
    assert written.startswith("before\n") and written.endswith("\nafter\n")
    assert "6 runs of 1,500 to 8,000 steps (4 configurations, seeds 0, 1, 2)" in written
    assert "| sst2 + hypernym | sparse | pretrained | 64 x 8,000 | 0 | 64.0 | 2.5 |" in written
    assert call(monkeypatch, *options) == 0
    assert document.read_text() == written


def test_mistakes_are_one_line(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    text = file.with_name("text.md")
    text.write_text("one\ntwo\n")
    mistakes = {
        ("--rows", file, "--split", "tset"): "has no scores of --split tset: it has those of test",
        ("--rows", file.with_name("rosw.jsonl")): f"no such file: did you mean {file}?",
        ("--rows", file.parent): "it is no file: name one",
        ("--rows", text): "has no scores: append some with python -m studies.finetuning",
    }
    for options, words in mistakes.items():
        assert call(monkeypatch, *options) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert [record.getMessage() for record in caplog.records] == [f"{text}: lines 1-2 are no rows and are passed over"]
    append_row(file, row("other", {"sst2": 60.0}, asked={"split": "validation"}))
    assert call(monkeypatch, "--rows", file) == 2
    assert "has scores of test and validation rows: choose with --split" in capsys.readouterr().err
