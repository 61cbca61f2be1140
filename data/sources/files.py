"""Shards that are files: on this host, mounted, or behind URLs."""

import glob
import re
from collections.abc import Iterator
from typing import Self

import fsspec

from data.config import FILE_ENDINGS
from data.sources.formats import file_format, read_rows
from data.sources.remote import is_remote, open_bytes
from data.sources.retry import DataError, Retries, reason
from data.sources.rows import BadRow, DamagedFileError, Row


def find_files(pattern: str) -> list[str]:
    """Paths or URLs that a pattern names, in the order of the pattern's numbers and then of their names.

    A glob is matched where the place can list its files: locally, s3, gs, hf, …; http(s) cannot.
    """
    return [path for one in expand_numbers(pattern) for path in _match(one)]


def expand_numbers(pattern: str) -> list[str]:
    """`a-{00..02}.gz` to `a-00.gz`, `a-01.gz`, `a-02.gz`, every range expanded; a text without one to itself."""
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
    """Files, one shard each. A row number is the whole state of a reader.

    Args:
        key: `setting = value` that named the files, for messages.
        paths: paths or URLs of formats that `read_rows` knows.
        text_column: JSON key or Parquet column of the text.
        retries: policy for failures.
        block_bytes: per request to a remote file.
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
        """The files that a pattern names; see `find_files`.

        Args:
            setting: the key that gave the pattern.

        Raises:
            ValueError: the pattern matches no file, or one of an unknown format.
            DataError: the place of the files cannot be listed.
        """
        key = f"{setting} = {pattern!r}"
        try:
            paths = find_files(pattern)
        except Exception as error:
            raise DataError(f"{key} cannot be listed: check the address and packages ({reason(error)})") from error
        if not paths:
            raise ValueError(
                f"{key} matches no file: run `bash launch/quickstart.sh` or `python -m data.prepare`, or set {setting}"
            )
        for path in paths:
            if file_format(path) is None:
                raise ValueError(f"{key}: {path} has an unknown file ending: use {FILE_ENDINGS}")
        return cls(key, paths, text_column, retries, block_bytes)

    @property
    def num_shards(self) -> int:
        """Files."""
        return len(self.paths)

    def describe(self, shard: int) -> str:
        """See `ShardSource`."""
        return f"{self.key}: shard {shard} ({self.paths[shard]})"

    def rows(self, shard: int, start: int) -> Iterator[Row]:
        """See `ShardSource`. A damaged local file ends at the damage, with one bad row; a remote one is read anew.

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
