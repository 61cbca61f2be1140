"""Opens the shards of a configured source."""

from data.config import DataConfig, TextSource
from data.sources.base import ShardSource
from data.sources.files import FileShards
from data.sources.hub import open_hub
from data.sources.retry import Retries


def open_shards(config: DataConfig, source: TextSource) -> ShardSource:
    """Open the shards of one source of the config.

    Raises:
        ValueError: no file matches or its format is unknown.
        DataError: the files cannot be listed, no such Hub dataset, or the Hub cannot be reached.
    """
    retries = Retries(config.retries, config.retry_seconds)
    if source.keys.source == "hub":
        return open_hub(source, retries, config.remote_block_bytes)
    return FileShards.matching(
        source.setting, source.files, source.keys.text_column, retries, config.remote_block_bytes
    )
