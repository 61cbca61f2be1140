"""The scripts parse, the Dockerfile copies what exists, and everything that train.py needs is in the image."""

import re
import subprocess
from pathlib import Path

import pytest

from common.project import ROOT

SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
ROOMS = ("common", "model", "data", "optim", "parallel", "training", "studies")


def dockerfile() -> list[list[str]]:
    """Instructions with their words, continuation lines joined, comments dropped."""
    text = "\n".join(
        line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")
    )
    return [line.split() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_stop_at_errors(script: Path):
    subprocess.run(["bash", "-n", str(script)], check=True)
    if script.name != "setup.sh":  # sourced
        assert "set -euo pipefail" in script.read_text()


def test_every_path_that_the_dockerfile_copies_exists():
    copied = {source.rstrip("/") for words in dockerfile() if words[0] == "COPY" for source in words[1:-1]}
    assert copied
    assert [path for path in copied if not (ROOT / path.removeprefix("./")).exists()] == []
    assert copied >= {"train.py", "configs", "ds_configs", *ROOMS}


def test_dockerfile_installs_dependencies_before_code_and_does_not_run_as_root():
    instructions = dockerfile()
    install = next(i for i, words in enumerate(instructions) if "requirements.txt" in words and words[0] == "RUN")
    code = next(i for i, words in enumerate(instructions) if words[0] == "COPY" and "train.py" in words)
    assert install < code
    users = [words[1] for words in instructions if words[0] == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
    assert instructions[-1][0] == "CMD"
    names = {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "CMD"}
    assert {words[0] for words in instructions} <= names


def test_dockerfile_has_the_torch_of_the_requirements():
    image = next(words[1] for words in dockerfile() if words[0] == "ARG")
    torch = re.search(r"^torch==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert torch is not None
    assert f"pytorch:{torch[1]}-cuda" in image


def test_requirements_are_pinned():
    for name in ("requirements.txt", "requirements-dev.txt"):
        lines = (ROOT / name).read_text().splitlines()
        pins = [line for line in lines if line and not line.startswith("#")]
        assert pins
        assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][\w.]*", line)] == []


def test_hostfile_example_is_what_deepspeed_reads():
    from deepspeed.launcher.runner import fetch_hostfile

    assert fetch_hostfile(str(ROOT / "launch" / "hostfile.example")) == {"node-0": 8, "node-1": 8}


def test_rooms_import_only_downwards():
    """Everything may import common; model, data and optim none of the others; training none of the entries."""
    allowed = {
        "common": set(), "model": {"common"}, "data": {"common"}, "optim": {"common"}, "parallel": {"common", "model"},
        "training": {"common", "model", "data", "optim", "parallel"},
    }  # fmt: skip
    ours = set(ROOMS) | {"train", "convert", "benchmarks", "tests"}
    for room, below in allowed.items():
        for file in (ROOT / room).rglob("*.py"):
            imported = set(re.findall(r"^\s*(?:from|import) (\w+)", file.read_text(), re.MULTILINE)) & ours
            assert imported <= below | {room}, file
    for file in (ROOT / "model").rglob("*.py"):
        assert "deepspeed" not in re.findall(r"^\s*(?:from|import) (\w+)", file.read_text(), re.MULTILINE), file
