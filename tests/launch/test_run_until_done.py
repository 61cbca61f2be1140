"""The scripts that start training commands: restarts, and paths from any folder."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.test_launch_files import ROOT

FAILING = """
echo "$*" >>"$0.calls"
echo "attempt $(wc -l <"$0.calls")" >&2
set -- $(sed -n "$(wc -l <"$0.calls")p" "$0.codes")
exit "$1"
"""


@pytest.mark.parametrize(
    ("codes", "options", "code", "calls"),
    [
        ([1, 247, 4, 5, 0], [], 0, 5),
        ([1, 2], [], 2, 2),
        ([3], [], 3, 1),
        ([75], [], 75, 1),
        ([64], [], 64, 1),
        ([77], [], 77, 1),
        ([1, 126], [], 126, 2),
        ([1, 127], [], 127, 2),
        ([1, 1, 1, 1], ["--max-restarts", "2"], 1, 3),
        ([1, 1, 1, 1], ["--crash-loop", "2"], 1, 2),
    ],
)
def test_restarts(codes: list[int], options: list[str], code: int, calls: int, tmp_path: Path):
    command = tmp_path / "command"
    command.write_text(FAILING)
    command.with_name("command.codes").write_text("\n".join(map(str, codes)) + "\n")
    script = ["bash", str(ROOT / "launch" / "run_until_done.sh"), "--backoff", "0", *options]
    result = subprocess.run([*script, "bash", str(command), "a=b"], capture_output=True, text=True, timeout=60)
    assert result.returncode == code, result.stderr
    assert command.with_name("command.calls").read_text().splitlines() == ["a=b --restart"] * calls
    assert result.stderr.count("; restart ") == calls - 1
    repeated = f"run_until_done: the first failure: exit code {codes[0]}: attempt 1\n"
    assert result.stderr.endswith(repeated) == (code != 0 and calls > 1)


def test_a_script_without_a_command_says_how():
    script = str(ROOT / "launch" / "run_until_done.sh")
    for arguments in ([], ["--max-restart", "3"], ["--backoff"], ["--backoff", "soon", "true"]):
        result = subprocess.run(["bash", script, *arguments], capture_output=True, text=True, timeout=60)
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("warning: x\nerror: training.steps = 0: set more\nerror: later", "error: training.steps = 0: set more"),
        ("node-1: error: no space\nssh exited with exit code 5", "node-1: error: no space"),
        ("Traceback (most recent call last):\n  File x\nValueError: bad\nlast words", "ValueError: bad"),
        ("first\nSegmentation fault", "Segmentation fault"),
    ],
)
def test_the_reason_of_the_first_failure_is_repeated(output: str, reason: str, tmp_path: Path):
    (tmp_path / "output").write_text(output + "\n")
    script = ["bash", str(ROOT / "launch" / "run_until_done.sh"), "--backoff", "0", "--crash-loop", "2"]
    command = ["bash", "-c", f'cat "{tmp_path}/output" >&2; exit 1']
    result = subprocess.run([*script, *command], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f"run_until_done: the first failure: exit code 1: {reason}"


def test_a_command_that_does_not_exist_is_not_restarted(tmp_path: Path):
    script = ["bash", str(ROOT / "launch" / "run_until_done.sh"), "--backoff", "0"]
    result = subprocess.run([*script, str(tmp_path / "none")], capture_output=True, text=True, timeout=60)
    assert result.returncode == 127
    assert "; restart " not in result.stderr


def stub(folder: Path, name: str, prints: str) -> None:
    """A program of this name that only prints."""
    (folder / name).write_text(f"#!/usr/bin/env bash\n{prints}\n")
    (folder / name).chmod(0o755)


def test_paths_are_those_of_the_folder_one_stands_in(tmp_path: Path):
    """The project's own programs are found, and every other path is left alone."""
    project, here, bin_folder = tmp_path / "project", tmp_path / "here", tmp_path / "bin"
    for folder in (project / "launch", project / "common", here, bin_folder):
        folder.mkdir(parents=True)
    for script in ("run_until_done.sh", "multi_node.sh"):
        shutil.copy(ROOT / "launch" / script, project / "launch")
    shutil.copy(ROOT / "common" / "hosts.py", project / "common")
    (project / "train.py").write_text("")
    (here / "hosts").write_bytes(b"\r\n# mine\r\nme@node-7 slots=2\r\n")
    stub(bin_folder, "deepspeed", 'echo "$PWD $*"; cat /proc/self/fd/9; exit 75')
    stub(bin_folder, "ssh", "true")
    stub(bin_folder, "pdsh", "true")
    stub(bin_folder, "python", f'case "$*" in *hosts*) exec {sys.executable} "$@" ;; esac; echo "$PWD $*"; exit 75')
    environment = {"PATH": f"{bin_folder}:/usr/bin:/bin"}

    def run(*command: str) -> list[str]:
        result = subprocess.run(
            ["bash", *command], cwd=here, env=environment, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 75, result.stderr
        return result.stdout.splitlines()

    restart = str(project / "launch" / "run_until_done.sh")
    assert run(restart, "python", "train.py", "--config", "mine.yaml") == [
        f"{here} {project}/train.py --config mine.yaml --restart"
    ]
    started = run(str(project / "launch" / "multi_node.sh"), "hosts", "--config", "mine.yaml")
    assert started[0].startswith(f"{here} --quiet --no_ssh_check --force_multi --hostfile ")
    assert started[0].endswith(f"--master_addr node-7 --master_port 29500 {project}/train.py --config mine.yaml")
    assert started[1:] == ["me@node-7 slots=2"]
    (here / "local").write_text("localhost slots=1\n")
    alone = run(str(project / "launch" / "multi_node.sh"), "local", "--config", "mine.yaml")
    assert alone[0].startswith(f"{here} --quiet --no_ssh_check --hostfile ")
    assert run(restart, "bash", "launch/multi_node.sh", "hosts", "--config", "mine.yaml")[1:] == started[1:]

    stub(bin_folder, "ssh", "echo 'Permission denied (publickey).' >&2; exit 255")
    script = str(project / "launch" / "multi_node.sh")
    refused = subprocess.run(
        ["bash", script, "hosts", "--config", "mine.yaml"], cwd=here, env=environment, capture_output=True, text=True
    )
    assert refused.returncode == 1
    assert refused.stderr == (
        "error: ssh does not reach me@node-7 of hosts without a password: Permission denied (publickey).\n"
    )
