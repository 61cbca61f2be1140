"""One process works, the others read: also when it dies, stops or fails."""

import os
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.once_per_host import STALE_SECONDS, Launch, parent_start
from tests.support.forks import fork

Show = Callable[[], None]


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the folders of this user are."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"st-moe-{os.getuid()}"


def write_name(folder: Path, show_progress: Show) -> None:
    (folder / "by").write_text("this process")


def read(launch: Launch, make: Callable[[Path, Show], None] = write_name) -> str | None:
    with launch.once("work", make) as folder:
        return None if folder is None else (folder / "by").read_text()


def work_forever(temporary: str, started: Path) -> None:
    def make(folder: Path, show_progress: Show) -> None:
        (folder / "by").write_text("nobody")
        started.touch()
        signal.pause()

    tempfile.tempdir = temporary
    read(Launch("a launch", 2), make)


def test_a_dead_process_is_replaced_and_nobody_waits_for_one_without_progress(tmp_path: Path, base: Path):
    started = tmp_path / "started"
    process = fork(work_forever, str(tmp_path), started)
    while not started.exists():
        time.sleep(0.01)
    assert read(Launch("a launch", 2, patience=0.1)) is None
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(read, Launch("a launch", 2)) for _ in range(2)]
        assert not any(future.done() for future in waiting)
        os.kill(int(process.pid or 0), signal.SIGKILL)
        assert [future.result() for future in waiting] == ["this process"] * 2
    process.join()
    assert not [*base.iterdir()]


def test_work_is_of_one_launch_and_one_kind():
    assert read(Launch("a launch", 2)) == "this process"

    def other(folder: Path, show_progress: Show) -> None:
        (folder / "by").write_text("other")

    assert read(Launch("another launch", 2), other) == "other"
    assert read(Launch("a launch", 2), other) == "this process"  # of the first call
    assert read(Launch("a launch", 2), other) == "other"  # both have read that


def test_an_error_is_raised_and_the_next_process_tries():
    def fail(folder: Path, show_progress: Show) -> None:
        raise ValueError("no text")

    with pytest.raises(ValueError, match="no text"):
        read(Launch("a launch", 2), fail)
    assert read(Launch("a launch", 2)) == "this process"

    def disk_full(folder: Path, show_progress: Show) -> None:
        raise OSError(28, "No space left on device")

    assert read(Launch("another launch", 2), disk_full) is None


def test_who_works_shows_that_it_makes_progress():
    def make(folder: Path, show_progress: Show) -> None:
        lock = folder.parent / "lock"
        os.utime(lock, (0, 0))
        show_progress()
        assert lock.stat().st_mtime > 0
        write_name(folder, show_progress)

    assert read(Launch("a launch", 1, patience=0.0), make) == "this process"


def test_a_folder_that_others_can_write_is_not_used(base: Path, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    base.symlink_to(tmp_path / "elsewhere")
    assert read(Launch("a launch", 1)) is None
    base.unlink()
    base.mkdir()
    base.chmod(0o777)
    assert read(Launch("a launch", 1)) is None
    base.chmod(0o700)
    assert read(Launch("a launch", 1)) == "this process"


def test_what_killed_processes_left_is_removed_after_a_day(base: Path):
    assert read(Launch("a launch", 9)) == "this process"
    (left,) = base.iterdir()
    assert read(Launch("another launch", 1)) == "this process"
    assert left.exists()
    os.utime(left, (time.time() - STALE_SECONDS - 9,) * 2)
    assert read(Launch("another launch", 1)) == "this process"
    assert not left.exists()


def test_the_launcher_is_told_from_others():
    name = parent_start()
    assert name is not None and name.split()[0] == str(os.getppid()) and name == parent_start()
