"""A process without a launcher joins a group of its own, whatever address is left in its environment."""

from pathlib import Path

import pytest

from tests.support.launch import python

JOIN = """
import os
from training.run.distributed import initialize_distributed, shut_down_distributed
from training.run.process import Process
process = Process(0, 0, 1, 1) if os.environ.pop("DIRECT", None) else Process.from_environment()
print(process.rank, process.world_size, initialize_distributed(process, 30.0))
shut_down_distributed()
"""
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.mark.parametrize("left", [{"MASTER_ADDR": "192.0.2.1", "WORLD_SIZE": ""}, {"DIRECT": "1"}])
def test_one_process_needs_no_launcher(left: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "join.py").write_text(JOIN)
    result = python(str(tmp_path / "join.py"))
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.splitlines()[-1] == "0 1 cpu"
