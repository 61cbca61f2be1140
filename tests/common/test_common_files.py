"""Atomic writes and locks."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.files import acquire_lock, naming, sync_folder, write_atomically
from common.project import ROOT

HOLD = """
import sys
from pathlib import Path
from common.files import acquire_lock
file = Path(sys.argv[1]).open("w")
print(acquire_lock(file, shared=sys.argv[2] == "shared"))
sys.stdin.read()
"""


def test_a_full_disk_names_the_file(tmp_path: Path):
    with pytest.raises(OSError, match="No space left on device") as full, naming(tmp_path / "plan.png"):
        Path("/dev/full").write_text("x")
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(tmp_path / "plan.png"))
    with pytest.raises(FileNotFoundError) as missing:
        write_atomically(tmp_path / "none" / "plan.json", "{}")
    assert str(tmp_path / "none") in str(missing.value.filename)


def test_of_two_processes_that_write_a_file_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, flush = tmp_path / "results.json", os.fsync

    def meanwhile(handle: int) -> None:
        monkeypatch.setattr(os, "fsync", flush)
        child = os.fork()
        if child == 0:
            write_atomically(path, "the other's")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert path.read_text() == "the other's"
        flush(handle)

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_atomically(path, "ours, which is longer")
    assert path.read_text() == "ours, which is longer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "results.json", "x")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "latest"
    write_atomically(path, "step_1 →")
    assert path.read_text(encoding="utf-8") == "step_1 →"
    write_atomically(path, b"\0\1")
    sync_folder(tmp_path)
    assert path.read_bytes() == b"\0\1"

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "half")
    assert path.read_bytes() == b"\0\1"
    monkeypatch.undo()
    write_atomically(path, "again")
    assert [file.name for file in tmp_path.iterdir()] == ["latest"]


def test_a_folder_that_cannot_be_synced_is_no_failure_and_a_bad_disk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fails(number: int) -> Callable[[int], None]:
        def fsync(_: int) -> None:
            raise OSError(number, os.strerror(number))

        return fsync

    for number in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
        monkeypatch.setattr("os.fsync", fails(number))
        sync_folder(tmp_path)
    monkeypatch.setattr("os.fsync", fails(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)


def test_a_lock_is_held_until_its_process_ends(tmp_path: Path):
    path = tmp_path / "lock"
    for kind in ("alone", "shared"):
        command = [sys.executable, "-u", "-c", HOLD, str(path), kind]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdin is not None
            assert other.stdout is not None
            assert other.stdout.readline() == "True\n"
            with path.open() as file:
                assert acquire_lock(file) is False
                assert acquire_lock(file, shared=True) is (kind == "shared")
            with path.open() as file:
                other.stdin.close()
                assert acquire_lock(file, wait=True) is True  # when the other process has ended
