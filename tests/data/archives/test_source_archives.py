"""Source archives: pip checks the hash before it runs any of their code. pip is replaced, nothing is downloaded."""

import hashlib
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.archives import download
from data.archives.download import Archive, fetch_archive

CONTENT = b"a source archive"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace pip by what it does with a requirement that has a hash; return the commands it received."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        requirement = Path(command[command.index("--requirement") + 1]).read_text()
        if requirement != f"thing==1.0 --hash=sha256:{SHA256}\n":
            return subprocess.CompletedProcess(command, 1, "", "ERROR: HASHES DO NOT MATCH\n")
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir()
        (folder / "thing-1.0.zip").write_bytes(CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(download, "subprocess", SimpleNamespace(run=run, DEVNULL=subprocess.DEVNULL))
    return commands


def test_pip_gets_the_hash_with_the_name(tmp_path: Path, pip: list[list[str]]) -> None:
    archive = Archive("pip-source", "thing==1.0", SHA256, 0.1)
    path = fetch_archive(archive, tmp_path / "kept")
    assert path.read_bytes() == CONTENT and path.name == "thing_1.0.archive"
    assert archive.origin == "PyPI package thing==1.0"
    (command,) = pip
    assert {"--require-hashes", "--no-deps", "--no-binary=:all:"} <= set(command)
    assert [file.name for file in path.parent.iterdir()] == ["thing_1.0.archive"]
    assert fetch_archive(archive, tmp_path / "kept") == path and len(pip) == 1, "a kept archive is not fetched again"


@pytest.mark.usefixtures("pip")
def test_another_hash_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^cannot download thing==1\.0: ERROR: HASHES DO NOT MATCH: check the network"
    ):
        fetch_archive(Archive("pip-source", "thing==1.0", "0" * 64, 0.1), tmp_path)
    assert list(tmp_path.iterdir()) == []
