"""Open files by path or URL: local files, http(s) by range requests, other protocols (s3, gs, hf, …) with fsspec."""

import io
from functools import cache
from typing import Any, BinaryIO

from data.sources.retry import DataError

TIMEOUT_SECONDS = 30.0


def is_remote(path: str) -> bool:
    """Return whether a path is a URL outside the local file system."""
    return "://" in path and not path.startswith("file://")


def open_bytes(path: str, block_bytes: int) -> BinaryIO:
    """Open a seekable binary file at a path or URL.

    Remote files are read in blocks, one request each: a server would close an open response while its stream is idle.

    Args:
        path: path or URL.
        block_bytes: bytes per request.

    Raises:
        ImportError: the URL's protocol needs a package that is not installed (s3: s3fs, gs: gcsfs).
        OSError, httpx2.HTTPError: the file cannot be opened.
    """
    if path.startswith(("http://", "https://")):
        return io.BufferedReader(HttpFile(path), block_bytes)
    if is_remote(path):
        import fsspec  # here, since local files need none of it: its import takes as long as NumPy's

        files, name = fsspec.core.url_to_fs(path)
        opened: BinaryIO = files.open(name, "rb", block_size=block_bytes)
        return opened
    return open(path.removeprefix("file://"), "rb")


@cache
def _client() -> Any:
    import httpx2

    return httpx2.Client(timeout=TIMEOUT_SECONDS, follow_redirects=True)


class HttpFile(io.RawIOBase):
    """A file on an HTTP server that supports range requests. Short responses are detected.

    A change of the file's size or ETag while it is read is an error.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._position = 0
        self._size: int | None = None
        self._etag: str | None = None

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes from the start."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position; see ``io.IOBase.seek``."""
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
        """Fill the buffer with one request.

        Returns:
            Number of bytes read, 0 at the end of the file.

        Raises:
            httpx2.HTTPError, EOFError: no connection, an error status or a truncated response.
            OSError: the file has changed.
            DataError: the server ignores range requests.
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
        # Ranges of a response that the server compresses would address compressed bytes.
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        with _client().stream("GET", self._url, headers=headers) as response:
            if response.status_code == 416 and response.headers.get("content-range", "").endswith("*/0"):
                self._size = 0
                return b""
            response.raise_for_status()
            if response.status_code != 206:
                raise DataError(f"{self._url}: the server ignores range requests: use another server or a local copy")
            content: bytes = response.read()
        size = int(response.headers["content-range"].rpartition("/")[2])
        etag = response.headers.get("etag")
        if self._size is not None and (size, etag) != (self._size, self._etag):
            raise OSError(f"{self._url} changed on the server while it was read")
        self._size, self._etag = size, etag
        if len(content) != min(end, size) - start:
            raise EOFError(f"{self._url}: received {len(content)} of {min(end, size) - start} bytes at offset {start}")
        return content
