"""Rows streamed from the Hugging Face Hub, shard by shard."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from data.config import DataConfig
from data.corpus import Row, Split, check_text

# Consecutive failures without one new row before a shard is given up; waits double from 1 s: 1 + 2 + … + 32 s.
ATTEMPTS = 7


def load_from_hub(config: DataConfig, split: Split) -> Any:
    """The Hub dataset of the config, as a `datasets.IterableDataset`; reads its list of files only."""
    import datasets

    return datasets.load_dataset(
        config.hub_dataset, config.hub_config, split=split, revision=config.hub_revision, streaming=True
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class HubShards:
    """One streamed file per shard, read from its start and skipped to a row: a row number is the whole state.

    The shuffling and `state_dict` of `datasets` are not used: the former loses and repeats rows on resume, the latter
    restarts from zero without a word when the epoch differs, and neither is tied to a single shard.

    Args:
        config: names dataset, configuration and revision.
        split: name of the split on the Hub.
        load: returns the streaming dataset; a parameter so that any `datasets` loader can stand in for the Hub.
        sleep: waits so many seconds between attempts.

    Raises:
        ValueError: no such dataset, configuration or split.
        ConnectionError: the Hub cannot be reached.
    """

    def __init__(
        self,
        config: DataConfig,
        split: Split,
        load: Callable[[DataConfig, Split], Any] = load_from_hub,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.key = f"data.hub_dataset = {config.hub_dataset!r} ({config.hub_config}, {split})"
        self._sleep = sleep
        try:
            self._dataset = load(config, split)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(
                f"{self.key} cannot be opened: check data.hub_dataset, data.hub_config and data.hub_revision "
                f"({_reason(error)})"
            ) from error
        except Exception as error:
            raise ConnectionError(
                f"{self.key} cannot be reached: check the network and HF_TOKEN, or set data.source=local "
                f"({_reason(error)})"
            ) from error

    @property
    def num_shards(self) -> int:
        """Files of the split (1,024 for C4 English)."""
        return int(self._dataset.num_shards)

    def rows(self, shard: int, start: int) -> Iterator[Row]:
        """See `ShardSource`. After any error the shard is opened anew at the row reached.

        A broken connection in a gzip stream surfaces as any of a dozen exceptions, and the retry built into `datasets`
        goes on in the middle of the compressed data; only a new stream reads on correctly.

        Raises:
            ConnectionError: several attempts in a row gave no new row.
        """
        row, failures = start, 0
        while True:
            try:
                for record in self._dataset.shard(num_shards=self.num_shards, index=shard).skip(row):
                    row, failures = row + 1, 0
                    yield check_text(record)
                return
            except Exception as error:
                failures += 1
                if failures == ATTEMPTS:
                    raise ConnectionError(
                        f"{self.key}: shard {shard} cannot be read beyond row {row} after {ATTEMPTS} attempts: check "
                        f"the network ({_reason(error)})"
                    ) from error
            self._sleep(2.0 ** (failures - 1))
