"""A free port of this machine, also for scripts: ``python -m common.ports`` prints one."""

import contextlib
import random
import socket

# Below the range from which kernels take the ports of outgoing connections: such a port may be gone before it is used.
FIRST, LAST = 10_000, 32_000


def free_port() -> int:
    """Return a TCP port of the loopback interface on which nothing listens now."""
    while True:
        port = random.SystemRandom().randrange(FIRST, LAST)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


if __name__ == "__main__":
    print(free_port())
