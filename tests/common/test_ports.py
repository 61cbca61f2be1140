"""Ports for a rendezvous."""

import socket
import subprocess
import sys

from common.ports import free_port
from common.project import ROOT


def test_a_free_port_can_be_bound_by_a_program_and_by_a_script():
    printed = subprocess.run(
        [sys.executable, "-m", "common.ports"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for port in (free_port(), int(printed.stdout)):
        with socket.socket() as s:
            s.bind(("127.0.0.1", port))
