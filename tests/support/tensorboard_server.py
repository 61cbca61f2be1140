"""The real ``tensorboard`` program on a run, asked over HTTP."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.ports import free_port

START_SECONDS = 90.0


class Server:
    """Answers of a server: ``get("scalars/tags")`` asks for ``/data/plugin/scalars/tags``."""

    def __init__(self, port: int):
        self.port = port

    def raw(self, path: str, body: Any = None, **query: str) -> bytes:
        mark = "&" if "?" in path else "?"
        url = f"http://127.0.0.1:{self.port}/data/{path}{mark}{urllib.parse.urlencode(query)}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            content: bytes = answer.read()
        return content

    def get(self, path: str, body: Any = None, **query: str) -> Any:
        return json.loads(self.raw(f"plugin/{path}", body, **query))

    def scalars(self, run: str) -> dict[str, list[tuple[int, float]]]:
        """By tag, step and value of every point."""
        tags = sorted(self.get("scalars/tags")[run])
        points = {tag: self.get("scalars/scalars", run=run, tag=tag) for tag in tags}
        return {tag: [(int(step), float(value)) for _, step, value in of] for tag, of in points.items()}

    def steps(self, plugin: str, run: str) -> dict[str, list[int]]:
        """By tag, the steps of its images, texts or histograms."""
        name = {"images": "images", "text": "text", "histograms": "histograms"}[plugin]
        tags = self.get(f"{plugin}/tags")[run]
        found = {}
        for tag in tags:
            entries = self.get(f"{plugin}/{name}", run=run, tag=tag, sample="0")
            found[tag] = [int(e[1] if isinstance(e, list) else e["step"]) for e in entries]
        return found


@contextmanager
def tensorboard(logdir: Path, *options: str) -> Iterator[Server]:
    """Start the program on ``logdir``, which it has read when the context begins."""
    port = free_port()
    program = str(Path(sys.executable).with_name("tensorboard"))
    keep = "--samples_per_plugin=" + ",".join(
        f"{plugin}=100000" for plugin in ("scalars", "images", "text", "histograms")
    )
    command = [program, "--logdir", str(logdir), "--port", str(port), "--reload_interval=1", keep, *options]
    log = logdir.with_name(f"{logdir.name}.tensorboard.log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_SECONDS
        server = Server(port)
        while True:
            try:
                if any(server.get("scalars/tags").values()):
                    break
            except (urllib.error.URLError, ConnectionError):
                pass
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(30)
