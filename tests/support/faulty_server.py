"""An HTTP server on the loopback address that fails at random, and answers as the Hugging Face Hub where asked to."""

import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

FAULTS = ("drop", "cut", "status 429", "status 503")


class FaultyServer(ThreadingHTTPServer):
    """Serves the files of a folder over HTTP.

    Args:
        folder: of the files; ``/name`` is ``folder/name``. A folder ``owner/name`` in it is a Hub dataset too.
        fault_rate: share of the requests for data that fail: the connection is dropped before or within the body, or
            the answer is an error.
        seed: of the faults.
    """

    daemon_threads = True

    def __init__(self, folder: Path, fault_rate: float = 0.0, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.fault_rate = fault_rate
        self.faults: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def draw_fault(self) -> str | None:
        with self._lock:
            if self._random.random() >= self.fault_rate:
                return None
            fault = self._random.choice(FAULTS)
            self.faults[fault] += 1
            return fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that went away."""


@contextmanager
def serve(folder: Path, **options: Any) -> Iterator[FaultyServer]:
    """Yield a running server, and stop it at the end."""
    with FaultyServer(folder, **options) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self._parts()
        if parts[:2] == ["api", "datasets"] and parts[4:5] == ["paths-info"]:
            wanted = json.loads(content)["paths"]
            self._send_json([entry for entry in self._tree(parts) if entry["path"] in wanted])
        else:
            self._send(404, b"")

    def _parts(self) -> list[str]:
        return unquote(urlsplit(self.path).path).strip("/").split("/")

    def _answer(self, with_body: bool) -> None:
        parts = self._parts()
        self.server.requests[self.command] += 1
        if parts[:2] == ["api", "datasets"]:
            self._answer_api(parts)
            return
        if parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            parts = [*parts[1:3], *parts[5:]]
        path = self.server.folder.joinpath(*parts)
        if ".." in parts or not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        self._send_file(path, with_body)

    def _answer_api(self, parts: list[str]) -> None:
        if not self.server.folder.joinpath(*parts[2:4]).is_dir():
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif parts[4:5] == ["tree"]:
            under = "/".join(parts[6:])
            self._send_json([entry for entry in self._tree(parts) if entry["path"].startswith(under)])
        else:
            names = [{"rfilename": entry["path"]} for entry in self._tree(parts)]
            sha = parts[5] if parts[4:5] == ["revision"] else "0" * 40
            self._send_json({"id": "/".join(parts[2:4]), "sha": sha, "siblings": names, "private": False, "tags": []})

    def _tree(self, parts: list[str]) -> list[dict[str, Any]]:
        root = self.server.folder.joinpath(*parts[2:4])
        return [
            {
                "type": "file" if path.is_file() else "directory",
                "path": str(path.relative_to(root)),
                "oid": sha1(str(path).encode()).hexdigest(),
                "size": path.stat().st_size if path.is_file() else 0,
            }
            for path in sorted(root.rglob("*"))
        ]

    def _send_file(self, path: Path, with_body: bool) -> None:
        content = path.read_bytes()
        digest = sha1(content).hexdigest()
        headers = {"ETag": f'"{digest}"', "Accept-Ranges": "bytes", "X-Repo-Commit": "0" * 40}
        wanted = self.headers.get("Range", "").removeprefix("bytes=")
        status = 200
        if wanted and with_body:
            first, _, last = wanted.partition("-")
            start, end = int(first), min(int(last) + 1 if last else len(content), len(content))
            if start >= len(content):
                self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{len(content)}"
            content = content[start:end]
        fault = self.server.draw_fault() if with_body and path.suffix != ".md" else None
        if fault == "drop":
            self.close_connection = True
            self.connection.close()
        elif fault == "cut":
            self._send(status, content, headers, cut=True)
        elif fault:
            self._send(int(fault.split()[1]), b"later", {"Retry-After": "0"})
        else:
            self._send(status, content, headers, with_body=with_body)

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        with_body: bool = True,
        cut: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.close_connection = True
