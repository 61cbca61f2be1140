"""File sources: local or mounted files and URLs, one shard per file."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from data.config import key_beside
from data.sources.formats import read_rows
from data.sources.patterns import find_files
from data.sources.remote import is_remote, open_bytes
from data.sources.retry import DataError, Retries
from data.sources.rows import BadRow, DamagedFileError, MissingColumnError, Row


class FileShards:
    """Files, one per shard. The row number is the complete state of a reader.

    Args:
        key: ``setting = value`` that selected the files, for error messages.
        paths: paths or URLs in formats that ``read_rows`` supports.
        text_column: JSON key or Parquet column of the text.
        retries: retry policy.
        block_bytes: bytes per request to a remote file.
        column_key: name of the setting that ``text_column`` is the value of, for messages.
    """

    def __init__(
        self,
        key: str,
        paths: list[str],
        text_column: str,
        retries: Retries,
        block_bytes: int,
        column_key: str = "text_column",
    ) -> None:
        self.key = key
        self._column_key = column_key
        self.paths = paths
        self.retries = retries
        self._text_column = text_column
        self._block_bytes = block_bytes

    @classmethod
    def matching(
        cls,
        setting: str,
        patterns: str | Sequence[str],
        text_column: str,
        retries: Retries,
        block_bytes: int,
        column_key: str = "text_column",
    ) -> Self:
        """Open the files that patterns name; see ``find_files``.

        Args:
            setting: config key or option that holds the patterns.
            patterns: one or several.
            text_column, retries, block_bytes, column_key: see the class.

        Raises:
            ValueError: no file matches, a folder does, or a file has an unknown format.
            DataError: the files cannot be listed.
        """
        paths = find_files(setting, patterns)
        return cls(f"{setting} = {patterns!r}", paths, text_column, retries, block_bytes, column_key)

    @property
    def num_shards(self) -> int:
        """Number of files."""
        return len(self.paths)

    def describe(self, shard: int) -> str:
        """See ``ShardSource``."""
        return f"{self.key}: shard {shard} ({self.paths[shard]})"

    def identify(self, shard: int) -> str:
        """See ``ShardSource``."""
        path = self.paths[shard]
        if is_remote(path):
            return path  # of the Hub, with the commit
        size = Path(path).stat().st_size if Path(path).is_file() else 0
        return f"{Path(path).name} of {size:,} bytes"

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
            except MissingColumnError as error:
                key = key_beside(self.key, self._column_key)
                raise DataError(f"{path} has no column {self._text_column!r}: set {key} to one of {error}") from error
