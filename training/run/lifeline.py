"""Tells a busy process from a dead one: a store that each rank serves from a thread that needs no interpreter."""

import contextlib
import os
import socket
import threading
from datetime import timedelta
from typing import Any


def open_lifeline(timeout_seconds: float) -> tuple[Any, str]:
    """Return a store that answers as long as this process is neither dead nor stopped, and its address."""
    from torch.distributed import TCPStore

    server = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=timeout_seconds), wait_for_workers=False)
    meeting_point = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    with socket.create_connection(meeting_point, timeout_seconds) as connection:
        return server, f"{connection.getsockname()[0]} {server.port}"


def probe(store: Any, key: str, timeout_seconds: float) -> threading.Event:
    """Ask the lifeline whose address is in ``store`` under ``key``. The returned event is set when it answers."""
    from torch.distributed import TCPStore

    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError, RuntimeError):
            address, port = store.get(key).decode().split()
            socket.create_connection((address, int(port)), timeout_seconds).close()  # a dead one refuses, quietly
            # A stopped process accepts connections, too, but does not speak: this blocks.
            TCPStore(address, int(port), None, False, timedelta(seconds=timeout_seconds), wait_for_workers=False)
            answered.set()

    threading.Thread(target=ask, daemon=True, name="watchdog: probe").start()
    return answered
