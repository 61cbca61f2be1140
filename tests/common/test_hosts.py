"""Host files as people write them, and as the launcher reads them after that."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.hosts import read_hosts
from common.project import ROOT


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node-0 slots=8\nnode-1 slots=8\n", {"node-0": 8, "node-1": 8}),
        ("# my hosts\r\n\r\nlocalhost slots=2   \r\n", {"localhost": 2}),
        ("\ufeffnode-0 slots=1\r\n \t\r\n", {"node-0": 1}),
        ("  # indented\n\tnode-0\tslots=2\t # trailing\n", {"node-0": 2}),
        ("node-0 slots=2 max_slots=4\nroot@10.0.0.2 slots = 1", {"node-0": 2, "root@10.0.0.2": 1}),
    ],
)
def test_a_host_file_is_read(text: str, hosts: dict[str, int], tmp_path: Path):
    file = tmp_path / "hosts"
    file.write_bytes(text.encode())
    assert read_hosts(file) == hosts


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "names no host"),
        ("# node-0 slots=8\n\n", "names no host"),
        ("node-0\n", "line 1: 'node-0' is not of the form HOST slots=N"),
        ("node-0 slots=eight\n", "line 1"),
        ("node-0 slots=8\nnode-1 8\n", "line 2: 'node-1 8'"),
        ("node-0 slots=0\n", "at least one rank"),
        ("node-0 slots=1\nnode-0 slots=1\n", "line 2: 'node-0 slots=1': node-0 is there twice"),
        ("node-[0-3] slots=8\n", "one host name a line"),
        ("fe80::1 slots=8\n", "IPv6"),
        ("node-0:22 slots=8\n", "port of ssh"),
        ("node-0 slots=8\nlocalhost slots=8\n", "localhost means another host"),
        ("node-0;reboot slots=8\n", "one host name a line"),
    ],
)
def test_a_mistake_in_a_host_file_is_one_line(text: str, named: str, tmp_path: Path):
    file = tmp_path / "hosts"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(named)) as caught:
        read_hosts(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_files_that_are_none_and_other_encodings_are_refused(tmp_path: Path):
    file = tmp_path / "hosts"
    file.write_bytes("node-0 slots=1".encode("utf-16"))
    for path, named in ((tmp_path, "directory"), (tmp_path / "missing", "No such file"), (file, "UTF-8")):
        with pytest.raises(ValueError, match=named):
            read_hosts(path)


def test_the_launchers_own_reader_takes_what_is_printed(tmp_path: Path):
    from deepspeed.launcher.runner import fetch_hostfile

    file, clean = tmp_path / "hosts", tmp_path / "clean"
    file.write_bytes(b"# mine\r\n\r\na slots = 2 # first\r\nme@b slots=1\r\n")
    command = [sys.executable, "-m", "common.hosts"]
    printed = subprocess.run([*command, str(file)], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    clean.write_text(printed)
    assert fetch_hostfile(str(clean)) == {"a": 2, "me@b": 1} == read_hosts(file)
    refused = subprocess.run([*command, str(clean) + "x"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: host file")
    assert refused.stderr.count("\n") == 1
