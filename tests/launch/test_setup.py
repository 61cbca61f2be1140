"""launch/setup.sh installs each list of requirements once, whichever scripts ask for it in turn."""

import shutil
import subprocess
import sys
from pathlib import Path

from common.project import ROOT

LISTS = {"requirements.txt": "torch==2.0\n", "requirements-dev.txt": "pytest==9.0\n"}


def set_up(project: Path, *lists: str) -> list[str]:
    """Installations that ``source launch/setup.sh LISTS`` makes, with a ``pip`` that only records them."""
    calls = project / "calls"
    calls.write_text("")
    script = f'set -euo pipefail; source launch/setup.sh {" ".join(lists)}; echo "$ACTIVE"'
    result = subprocess.run(
        ["bash", "-c", script], cwd=project, env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.endswith("yes\n")
    return [line.split()[-1] for line in calls.read_text().splitlines()]


def test_no_list_is_installed_twice(tmp_path: Path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / ".venv" / "bin" / "activate").write_text('ACTIVE=yes\npip() { echo "$@" >>calls; }\n')
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "setup.sh", tmp_path / "launch")
    for name, text in LISTS.items():
        (tmp_path / name).write_text(text)

    assert set_up(tmp_path, "requirements.txt") == ["torch==2.0", "-rrequirements.txt"]
    assert set_up(tmp_path, *LISTS) == ["torch==2.0", "-rrequirements-dev.txt"]
    assert set_up(tmp_path, "requirements.txt") == []
    assert set_up(tmp_path, *LISTS) == []
    (tmp_path / "requirements.txt").write_text("torch==2.1\n")
    assert set_up(tmp_path, *LISTS) == ["torch==2.1", "-rrequirements.txt"]
    assert set_up(tmp_path, "requirements.txt") == []
