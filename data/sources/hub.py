"""Hugging Face Hub sources: ``datasets`` resolves a dataset and streams it shard by shard."""

from collections.abc import Iterator
from typing import Any

from data.config import TextSource, key_beside
from data.sources.base import ShardSource
from data.sources.files import FileShards
from data.sources.formats import file_format
from data.sources.retry import DataError, Retries, reason
from data.sources.rows import Row, check_record

BATCH_ROWS = 256


def import_datasets() -> Any:
    """Import ``datasets`` with its own retries switched off.

    After a failed read of compressed data they continue in the middle of the decompressed data, which is an error at
    best. ``Retries`` opens the shard again instead.
    """
    import datasets

    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    for name in ("READ_RETRY", "READ_SERVER_UNAVAILABLE_RETRY", "READ_RATE_LIMIT_RETRY", "OPEN_RETRY"):
        setattr(datasets.config, f"STREAMING_{name}_INTERVAL", 0)
    return datasets


def open_hub(source: TextSource, retries: Retries, block_bytes: int) -> ShardSource:
    """Open the shards of a split of a Hub dataset at its revision. Reads the list of files only.

    ``FileShards`` reads JSON lines from the ``hf://`` files that ``datasets`` resolves: the JSON reader of ``datasets``
    loses 10 MB around one malformed line, and its text reader fails on invalid UTF-8. ``datasets`` streams all other
    formats.

    Raises:
        DataError: no such dataset, configuration or split, or the Hub cannot be reached.
    """
    keys = source.keys
    key = f"{source.setting} = {keys.hub_dataset!r} ({keys.hub_config}, {source.split})"
    try:
        builder = import_datasets().load_dataset_builder(keys.hub_dataset, keys.hub_config, revision=keys.hub_revision)
        files = _json_lines(builder, source.split)
        if files:
            return FileShards(key, files, keys.text_column, retries, block_bytes)
        return HubShards(key, builder.as_streaming_dataset(split=source.split), keys.text_column, retries)
    except (ValueError, FileNotFoundError) as error:
        raise DataError(
            f"{key} cannot be opened: check {key_beside(key, 'hub_dataset')}, its configuration, revision and split "
            f"({reason(error)})"
        ) from error
    except Exception as error:
        # The Hub's client has already retried.
        raise DataError(
            f"{key} cannot be reached: check the network and HF_TOKEN, or read files ({_use_files(source.setting)}) "
            f"({reason(error)})"
        ) from error


def _use_files(setting: str) -> str:
    if setting.startswith("--"):
        return "--source files --files PATTERN"
    return f"{key_beside(setting, 'source')}=files"


def _json_lines(builder: Any, split: str) -> list[str]:
    """Return the URLs of a split's files if all are JSON lines that ``read_rows`` supports, else an empty list."""
    from datasets.packaged_modules.json.json import Json

    if not isinstance(builder, Json) or builder.config.field is not None:
        return []
    files = [str(file) for file in (builder.config.data_files or {}).get(split, [])]
    return files if all(map(file_format, files)) else []


class HubShards:
    """One streamed file per shard, read from its start with rows skipped: the row number is the complete state.

    The shuffling and ``state_dict`` of ``datasets`` are not used. The former loses and repeats rows on resume; the
    latter silently restarts from zero if the epoch differs; neither works on a single shard.

    Args:
        key: ``setting = value`` that selected the dataset, for error messages.
        dataset: a ``datasets.IterableDataset``.
        text_column: column of the text.
        retries: retry policy; a broken connection surfaces as any of a dozen exceptions.
    """

    def __init__(self, key: str, dataset: Any, text_column: str, retries: Retries) -> None:
        self.key = key
        self.retries = retries
        self._dataset = dataset
        self._text_column = text_column

    @property
    def num_shards(self) -> int:
        """Number of files of the split."""
        return int(self._dataset.num_shards)

    def describe(self, shard: int) -> str:
        """See ``ShardSource``."""
        return f"{self.key}: shard {shard} of {self.num_shards}"

    def identify(self, shard: int) -> str:
        """See ``ShardSource``."""
        return f"shard {shard} of {self.num_shards}"

    def rows(self, shard: int, start: int) -> Iterator[Row]:
        """See ``ShardSource``.

        Raises:
            DataError: repeated attempts returned no new row, or there is no such column.
        """
        return self.retries.rows(lambda row: self._read(shard, row), start, self.describe(shard))

    def _read(self, shard: int, start: int) -> Iterator[Row]:
        import_datasets()
        rows = self._dataset.shard(num_shards=self.num_shards, index=shard).with_format("arrow")
        for table in rows.iter(batch_size=BATCH_ROWS):
            if self._text_column not in table.column_names:
                raise DataError(
                    f"{self.key} has no column {self._text_column!r}: set "
                    f"{key_beside(self.key, 'text_column')} to one of {', '.join(table.column_names)}"
                )
            skipped = min(start, table.num_rows)
            start -= skipped
            yield from map(check_record, table[self._text_column].slice(skipped).to_pylist())
