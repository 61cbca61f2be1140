"""Files by path or URL: local, http(s) by range requests, everything else (s3, gs, hf, …) through fsspec."""

import io
from functools import cache
from typing import Any, BinaryIO

import fsspec

from data.sources.retry import DataError

TIMEOUT_SECONDS = 30.0


def is_remote(path: str) -> bool:
    """Whether a path is a URL of another place than this host's file system."""
    return "://" in path and not path.startswith("file://")


def open_bytes(path: str, block_bytes: int) -> BinaryIO:
    """A seekable file of bytes at a path or URL.

    A remote one is read in blocks, a request each: the server would drop an open response while a stream waits for its
    turn.

    Raises:
        ImportError: the URL's protocol needs a package that is not installed (s3: s3fs, gs: gcsfs).
        OSError, httpx2.HTTPError: it cannot be opened.
    """
    if path.startswith(("http://", "https://")):
        return io.BufferedReader(HttpFile(path), block_bytes)
    if is_remote(path):
        files, name = fsspec.core.url_to_fs(path)
        opened: BinaryIO = files.open(name, "rb", block_size=block_bytes)
        return opened
    return open(path.removeprefix("file://"), "rb")


@cache
def _client() -> Any:
    import httpx2

    return httpx2.Client(timeout=TIMEOUT_SECONDS, follow_redirects=True)


class HttpFile(io.RawIOBase):
    """A file on an HTTP server that answers range requests; reads are checked to be whole.

    A file that changes on the server while it is read is an error (ETag), not a mixture of two.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._position = 0
        self._size: int | None = None
        self._etag: str | None = None

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Bytes from the start."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As any file's."""
        if whence == io.SEEK_END:
            if self._size is None:
                self._fetch(0, 1)
            assert self._size is not None
            offset += self._size
        elif whence == io.SEEK_CUR:
            offset += self._position
        self._position = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        """One request for as many bytes as the buffer holds.

        Raises:
            httpx2.HTTPError, EOFError: no connection, a bad status, an answer cut short.
            OSError: the file has changed.
            DataError: the server ignores ranges.
        """
        end = self._position + len(buffer)
        if self._size is not None:
            end = min(end, self._size)
        if end <= self._position:
            return 0
        content = self._fetch(self._position, end)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def _fetch(self, start: int, end: int) -> bytes:
        # Compression by the server would make its ranges those of other bytes.
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        with _client().stream("GET", self._url, headers=headers) as response:
            if response.status_code == 416 and response.headers.get("content-range", "").endswith("*/0"):
                self._size = 0
                return b""
            response.raise_for_status()
            if response.status_code != 206:
                raise DataError(f"{self._url}: the server ignores range requests: copy the file, or serve it otherwise")
            content: bytes = response.read()
        size = int(response.headers["content-range"].rpartition("/")[2])
        etag = response.headers.get("etag")
        if self._size is not None and (size, etag) != (self._size, self._etag):
            raise OSError(f"{self._url} has changed on the server while it was read")
        self._size, self._etag = size, etag
        if len(content) != min(end, size) - start:
            raise EOFError(f"{self._url}: {len(content)} of {min(end, size) - start} bytes from {start} on came")
        return content
