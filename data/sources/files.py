"""File sources: local or mounted files and URLs, one shard per file."""

import glob
import re
from collections.abc import Iterator
from typing import Self

import fsspec

from data.config import FILE_ENDINGS, RUN_PREPARE
from data.sources.formats import file_format, read_rows
from data.sources.remote import is_remote, open_bytes
from data.sources.retry import DataError, Retries, reason
from data.sources.rows import BadRow, DamagedFileError, Row


def find_files(pattern: str) -> list[str]:
    """Return the paths or URLs that match a pattern, ordered by the pattern's numbers, then by name.

    Globs work on file systems that can list files: local, s3, gs, hf, …; not http(s).
    """
    return [path for glob_pattern in expand_numbers(pattern) for path in _match(glob_pattern)]


def expand_numbers(pattern: str) -> list[str]:
    """Expand every range of numbers: ``a-{00..02}.gz`` to ``a-00.gz``, ``a-01.gz``, ``a-02.gz``.

    A pattern without a range expands to itself.
    """
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    head, tail = pattern[: found.start()], pattern[found.end() :]
    numbers = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    return [name for number in numbers for name in expand_numbers(head + number + tail)]


def _match(pattern: str) -> list[str]:
    if pattern.startswith(("http://", "https://")):
        return [pattern]
    if not is_remote(pattern):
        return sorted(glob.glob(pattern.removeprefix("file://"), recursive=True))
    if not glob.has_magic(pattern):
        return [pattern]
    files, path = fsspec.core.url_to_fs(pattern)
    return sorted(files.unstrip_protocol(name) for name in files.glob(path))


class FileShards:
    """Files, one per shard. The row number is the complete state of a reader.

    Args:
        key: ``setting = value`` that selected the files, for error messages.
        paths: paths or URLs in formats that ``read_rows`` supports.
        text_column: JSON key or Parquet column of the text.
        retries: retry policy.
        block_bytes: bytes per request to a remote file.
    """

    def __init__(self, key: str, paths: list[str], text_column: str, retries: Retries, block_bytes: int) -> None:
        self.key = key
        self.paths = paths
        self.retries = retries
        self._text_column = text_column
        self._block_bytes = block_bytes

    @classmethod
    def matching(
        cls,
        setting: str,
        pattern: str,
        text_column: str,
        retries: Retries,
        block_bytes: int,
    ) -> Self:
        """Open the files that match a pattern; see ``find_files``.

        Args:
            setting: config key that holds the pattern.
            pattern: glob or URL.
            text_column, retries, block_bytes: see the class.

        Raises:
            ValueError: no file matches, or a file has an unknown format.
            DataError: the files cannot be listed.
        """
        key = f"{setting} = {pattern!r}"
        try:
            paths = find_files(pattern)
        except Exception as error:
            raise DataError(f"{key} cannot be listed: check the address and packages ({reason(error)})") from error
        if not paths:
            raise ValueError(f"{key} matches no file: {RUN_PREPARE}, or set {setting}")
        for path in paths:
            if file_format(path) is None:
                raise ValueError(f"{key}: {path} has an unknown file ending: use {FILE_ENDINGS}")
        return cls(key, paths, text_column, retries, block_bytes)

    @property
    def num_shards(self) -> int:
        """Number of files."""
        return len(self.paths)

    def describe(self, shard: int) -> str:
        """See ``ShardSource``."""
        return f"{self.key}: shard {shard} ({self.paths[shard]})"

    def rows(self, shard: int, start: int) -> Iterator[Row]:
        """See ``ShardSource``. A damaged local file ends with one bad row at the damage; a remote one is read again.

        Raises:
            DataError: the file cannot be read, or a Parquet file lacks the column.
        """
        path = self.paths[shard]
        return self.retries.rows(lambda row: self._read(path, row), start, self.describe(shard))

    def _read(self, path: str, start: int) -> Iterator[Row]:
        with open_bytes(path, self._block_bytes) as file:
            try:
                yield from read_rows(file, path, self._text_column, start)
            except DamagedFileError:
                if is_remote(path):
                    raise
                yield BadRow.DAMAGED_FILE
