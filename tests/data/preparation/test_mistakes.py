"""Text that is none, too little or named otherwise, an interruption, and a place that cannot be written."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from common.project import ROOT
from data import prepare
from tests.support.prepared import SMALL

FILES = ["--source", "files", "--files"]

# Says that the vocabulary is in training, then never comes back, as a call of C++ on a long text.
ENDLESS = """
import sys, threading
from data import prepare
from data.preparation import build

def endless(*arguments):
    print("training", file=sys.stderr, flush=True)
    threading.Event().wait()

build.train_vocabulary = endless
sys.argv[0] = "prepare"
from common.program import run
run(prepare.command)
"""


def test_ctrl_c_ends_at_once_while_a_vocabulary_is_trained(
    tmp_path: Path, make_texts: Callable[..., list[str]]
) -> None:
    (tmp_path / "a.txt").write_text("\n".join(make_texts(100)))
    options = [*FILES, str(tmp_path / "a.txt"), *SMALL, "--out", str(tmp_path / "out")]
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, *options], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        assert process.stderr is not None and process.stderr.readline() == "training\n"
        process.send_signal(signal.SIGINT)
        guard = threading.Timer(60, process.kill)
        guard.start()
        error = process.stderr.read()
        assert process.wait() == 130
        guard.cancel()
    assert error == "interrupted: the same command continues\n"
    assert (tmp_path / ".out.partial/dataset/train").is_dir()
    assert prepare.main(options) == 0


@pytest.mark.parametrize("shards", ["64", "1"])
def test_a_file_that_is_no_text_is_recognized(tmp_path: Path, capsys: pytest.CaptureFixture[str], shards: str) -> None:
    (tmp_path / "a.txt").write_bytes(random.Random(0).randbytes(200_000))
    options = [*FILES, str(tmp_path / "a.txt"), "--vocab-size", "200", "--shards", shards, "--out", str(tmp_path / "o")]
    assert prepare.main(options) == 2
    error = capsys.readouterr().err
    assert f"--files = {tmp_path / 'a.txt'}: " in error and error.count("\n") == 1
    assert " rows were skipped (" in error and "is each file text?" in error and "--max-bad-fraction 0.01" in error
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_rows_without_text_are_accepted_up_to_the_fraction(
    tmp_path: Path, make_texts: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 111 rows, counted as 1,000, 11 are more than one percent; blank lines are no bad rows."""
    content = "\n\n".join(make_texts(100)).encode() + b"\n\xff" * 11
    (tmp_path / "a.txt").write_bytes(content)
    options = [*FILES, str(tmp_path / "a.txt"), *SMALL, "--out", str(tmp_path / "out")]
    assert prepare.main(options) == 2
    assert ": 11 of 111 rows were skipped (" in capsys.readouterr().err
    assert prepare.main([*options, "--max-bad-fraction", "0.011"]) == 0


def test_a_path_spelled_otherwise_names_the_same_text(
    tmp_path: Path, make_texts: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "own").mkdir()
    (tmp_path / "own/a.txt").write_text("\n".join(make_texts(100)))
    monkeypatch.chdir(tmp_path)
    for files in (f"{tmp_path}/own/", "own", "../" + tmp_path.name + "/own"):
        assert prepare.main([*FILES, files, *SMALL, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("already there") == 2
    assert prepare.main([*FILES, "own/a.txt", *SMALL, "--out", str(tmp_path / "out")]) == 2
    assert "holds a dataset made with --files" in capsys.readouterr().err


def test_far_too_little_text_is_said(
    tmp_path: Path, make_texts: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for count, said in ((60, 1), (1500, 0)):
        (tmp_path / "a.txt").write_text("\n".join(make_texts(count)))
        options = [*FILES, str(tmp_path / "a.txt"), *SMALL, "--out", str(tmp_path / str(count))]
        assert prepare.main(options) == 0
        assert capsys.readouterr().err.count("are far too little text to train on") == said


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_a_place_that_takes_no_folder_names_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert prepare.main([*FILES, str(tmp_path / "a.txt"), *SMALL, "--out", "/proc/x"]) == 2
    error = capsys.readouterr().err
    assert "--out /proc/x: " in error and ".partial" not in error and error.count("\n") == 1
