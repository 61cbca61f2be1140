"""A process without a launcher joins a group of its own, whatever address is left in its environment."""

import os
import subprocess
import sys

import pytest

from common.project import ROOT

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
def test_one_process_needs_no_launcher(left: dict[str, str]):
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | left
    result = subprocess.run(
        [sys.executable, "-c", JOIN], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.splitlines()[-1] == "0 1 cpu"
