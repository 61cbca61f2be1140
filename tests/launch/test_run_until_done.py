"""The restart script, with a command that fails as it is told."""

import subprocess
from pathlib import Path

import pytest

from tests.launch.test_launch_files import ROOT

FAILING = """
echo "$*" >>"$0.calls"
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


def test_a_script_without_a_command_says_how():
    script = str(ROOT / "launch" / "run_until_done.sh")
    for arguments in ([], ["--max-restart", "3"]):
        result = subprocess.run(["bash", script, *arguments], capture_output=True, text=True, timeout=60)
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1
