"""Paths as users type them."""

import argparse
import errno
import os
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from common.paths import (
    UserPath,
    beside,
    check_can_write,
    check_can_write_file,
    expand,
    nearest,
    no_folder,
    path_argument,
    searched,
    why,
)


def test_tilde_and_variables_are_those_of_the_shell(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    assert expand("~/c4/*.gz") == "/home/me/c4/*.gz"
    assert expand("~") == "/home/me"
    assert expand("$SCRATCH/runs") == expand("${SCRATCH}/runs") == "/scratch/me/runs"
    assert expand("s3://bucket/$SCRATCH/{00..03}.gz") == "s3://bucket//scratch/me/{00..03}.gz"
    for plain in ("runs/data/*.gz", "a~b", "cost$", "100$/x", "{00..03}", ""):
        assert expand(plain) == plain


@pytest.mark.parametrize(
    ("path", "words"), [("$NOT_SET/x", "NOT_SET is not set"), ("~nobody-here/x", "no home folder")]
)
def test_what_cannot_be_replaced_is_refused(path: str, words: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(ValueError, match=words):
        expand(path)
    with pytest.raises(argparse.ArgumentTypeError, match=words):
        path_argument(path)


def test_the_type_of_config_keys(monkeypatch: pytest.MonkeyPatch):
    class Section(BaseModel):
        one: UserPath = "runs"
        several: list[UserPath] = []

    monkeypatch.setenv("SCRATCH", "/scratch")
    assert Section(one="$SCRATCH/a", several=["$SCRATCH/b"]).model_dump() == {
        "one": "/scratch/a",
        "several": ["/scratch/b"],
    }
    with pytest.raises(ValidationError, match="NOT_SET is not set"):
        Section(several=["a", "$NOT_SET"])


def test_a_message_says_where_a_relative_path_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert searched("a/b") == f" in {tmp_path}"
    assert searched("/a/b") == searched("s3://a/b") == ""


def test_the_current_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here, other = tmp_path / "here", tmp_path / "other"
    for folder in (here, other):
        folder.mkdir()
    monkeypatch.chdir(here)
    assert beside("x.json", other) == Path("x.json")
    (other / "x.json").touch()
    assert beside("x.json", tmp_path, other) == other / "x.json"
    (here / "x.json").touch()
    assert beside("x.json", other) == Path("x.json")


def test_folders_that_can_and_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_can_write(tmp_path / "new" / "folder", "--out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^--out .*/file/x: .*/file is no folder: [^\n]+$"):
        check_can_write(tmp_path / "file" / "x", "--out")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ValueError, match="link is no folder"):
        check_can_write(tmp_path / "link", "--out")
    # root may write anywhere: let the system answer as it would another user
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match=f"no permission to write to {tmp_path}"):
        check_can_write(tmp_path / "x", "--out")


def test_a_place_that_takes_no_folders_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=r"^--out /proc/x/y: [^\n]* /proc[^\n]*: set another folder, [^\n]*$"):
        check_can_write("/proc/x/y", "--out")

    def no_space(*_args: object, **_named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "mkdir", no_space)
    with pytest.raises(ValueError, match="No space left on device"):
        check_can_write(tmp_path, "--out")
    check_can_write(tmp_path, "--out", attempt=False)


def test_a_full_disk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    full = os.statvfs_result((4096, 4096, 100, 0, 0, 10, 10, 10, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(ValueError, match="is full"):
        check_can_write(tmp_path, "--out")


def test_reasons_of_the_system(tmp_path: Path):
    with pytest.raises(OSError, match="No such file") as error:
        (tmp_path / "none").read_text()
    assert why(error.value) == f"No such file or directory: {tmp_path / 'none'}"
    assert why(OSError("plain")) == "plain"


def test_a_missing_path_is_likely_the_one_with_nearly_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder in ("runs/tiny", "runs/laboratory", "exported/tiny"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "runs" / "notes.txt").touch()
    assert nearest(tmp_path / "runs" / "tinny") == tmp_path / "runs" / "tiny"
    assert nearest(tmp_path / "rns" / "laborotary") == tmp_path / "runs" / "laboratory"
    for other in ("runs/zzz", "elsewhere/tiny/x", "runs/notes.txt/tiny"):
        assert nearest(tmp_path / other) is None
    monkeypatch.chdir(tmp_path)
    assert nearest("run/tiny") == Path("runs/tiny")
    assert no_folder(Path("runs/tinny"), "--trained runs/tinny", "name a run") == (
        f"--trained runs/tinny: no such folder in {tmp_path}: did you mean runs/tiny?"
    )
    assert no_folder(Path("runs/note.txt"), "x", "name a run") == f"x: no such folder in {tmp_path}: name a run"
    assert no_folder(Path("runs/notes.txt"), "x", "name a run") == "x is a file, no folder: name a run"


def test_files_that_cannot_be_written_are_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    there = tmp_path / "rows.jsonl"
    there.write_text("{}")
    for file in (there, tmp_path / "new" / "folder" / "rows.jsonl"):
        check_can_write_file(file, "--rows")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]  # nothing is left there
    check_can_write_file(there, "--json", in_folder=True)
    with pytest.raises(
        ValueError, match=rf"^--json {tmp_path}/new/x: there is no folder {tmp_path}/new: make it first"
    ):
        check_can_write_file(tmp_path / "new" / "x", "--json", in_folder=True)
    for file, reason in (
        (tmp_path, "it is a folder"),
        (there / "rows.jsonl", f"{there} is no folder"),
        (Path("/dev/null"), "it is no regular file"),
        (Path("/proc/rows.jsonl"), "nothing can be made in /proc"),
    ):
        with pytest.raises(ValueError, match=rf"^--rows {file}: {reason}.*: name another file$"):
            check_can_write_file(file, "--rows")
    monkeypatch.setattr("os.access", lambda path, mode: path != there)
    with pytest.raises(ValueError, match="no permission to read and write it: name another file"):
        check_can_write_file(there, "--rows")
