"""Reads a host file: ``python -m common.hosts FILE`` prints it as DeepSpeed's launcher reads it, or one line of error.

A line names a host for ssh and its number of ranks: ``node-0 slots=8``. Comments begin with ``#``; Windows line ends,
blank lines, further words such as ``max_slots=8`` and spaces around ``=`` are harmless.
"""

import re
import sys
from pathlib import Path

LINE = re.compile(r"(?P<host>\S+)\s+slots\s*=\s*(?P<slots>\d+)(?:\s.*)?")
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def read_hosts(path: Path) -> dict[str, int]:
    """Return the number of ranks of each host, in the order of the file.

    Raises:
        ValueError: one line that names file, line and fix.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"host file {path}: {error.strerror} (in {Path.cwd()})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"host file {path} is not UTF-8 text: save it as such") from error
    hosts: dict[str, int] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        where = f"host file {path}, line {number}: {line!r}"
        match = LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{where} is not of the form HOST slots=N, N being the number of GPUs")
        host, slots = match["host"], int(match["slots"])
        if not slots:
            raise ValueError(f"{where}: a host needs at least one rank: comment the line out with #, or set slots")
        if re.search(r"[\[\],;|&$`'\"()<>*?\\]", host):
            raise ValueError(f"{where}: write one host name a line, without brackets or lists")
        if host.count(":") > 1:  # pdsh reads the first colon as the end of its own module's name
            raise ValueError(f"{where}: the launcher takes no IPv6 address: give the host a name in ~/.ssh/config")
        if ":" in host:
            raise ValueError(f"{where}: write HOST slots=N; another port of ssh belongs into ~/.ssh/config")
        if host in hosts:
            raise ValueError(f"{where}: {host} is there twice: add up its slots in one line")
        hosts[host] = slots
    if not hosts:
        raise ValueError(f"host file {path} names no host: write one line HOST slots=N for each")
    local = [host for host in hosts if host.rpartition("@")[2] in LOCAL_NAMES]
    if local and len(hosts) > 1:
        raise ValueError(f"host file {path}: {local[0]} means another host on each host: write its name")
    return hosts


def main() -> int:
    """Print the hosts of the file that the command line names; return the exit code."""
    try:
        hosts = read_hosts(Path(sys.argv[1]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for host, slots in hosts.items():
        print(f"{host} slots={slots}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
