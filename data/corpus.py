"""Rows of text in shards, and the fixed order in which logical streams read them.

A corpus is a list of shards dealt to `num_streams` logical streams. What a stream reads follows from (seed, stream,
position) alone, so a run stops anywhere and goes on exactly, at another number of ranks too.
"""

import glob
import gzip
import json
import zlib
from collections.abc import Iterator
from enum import Enum
from itertools import islice
from typing import Literal, NamedTuple, Protocol

import numpy as np

from data.config import DataConfig

Split = Literal["train", "validation"]

# First word of every seed, so that no two uses of randomness share one (numpy pads short seeds with zeros).
SHARD_ORDER, TRAIN_MASK, VALIDATION_MASK = 1, 2, 3


class BadRow(Enum):
    """Why a row holds no document. Such rows are counted and skipped: one bad line in a billion must not end a run."""

    BLANK_LINE = "blank_line"
    INVALID_UTF8 = "invalid_utf8"
    MALFORMED_JSON = "malformed_json"
    MISSING_TEXT = "missing_text"
    NON_STRING_TEXT = "non_string_text"
    EMPTY_TEXT = "empty_text"
    DAMAGED_GZIP = "damaged_gzip"


Row = str | BadRow


class Position(NamedTuple):
    """Where a stream reads next: `shard` counts in the epoch's order of this stream, `row` within that shard."""

    epoch: int
    shard: int
    row: int


class ShardSource(Protocol):
    """Shards of rows, in an order that never changes."""

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        ...

    @property
    def key(self) -> str:
        """`key = value` of the setting that chose this source, for error messages."""
        ...

    def rows(self, shard: int, start: int) -> Iterator[Row]:
        """Rows of a shard, from row `start` on; good or bad, each counts as one."""
        ...


def check_text(record: object) -> Row:
    """The text of one decoded record, or why it has none."""
    if not isinstance(record, dict) or record.get("text") is None:
        return BadRow.MISSING_TEXT
    text = record["text"]
    if not isinstance(text, str):
        return BadRow.NON_STRING_TEXT
    if not text.strip():
        return BadRow.EMPTY_TEXT
    try:
        # JSON can spell half of a surrogate pair, which no tokenizer takes.
        text.encode("utf-8")
    except UnicodeEncodeError:
        return BadRow.INVALID_UTF8
    return text


def parse_line(line: bytes) -> Row:
    """The text of one JSON line, or why it has none."""
    if not line.strip():
        return BadRow.BLANK_LINE
    try:
        return check_text(json.loads(line.decode("utf-8")))
    except UnicodeDecodeError:
        return BadRow.INVALID_UTF8
    except (ValueError, RecursionError):
        return BadRow.MALFORMED_JSON


class LocalShards:
    """C4-layout files on disk, in the order of their names.

    Raises:
        ValueError: the pattern matches no file.
    """

    def __init__(self, key: str, pattern: str) -> None:
        self.key = f"{key} = {pattern!r}"
        self.paths = sorted(glob.glob(pattern, recursive=True))
        if not self.paths:
            raise ValueError(
                f"{self.key} matches no file: run `bash launch/quickstart.sh` or `python -m data.prepare`, or set {key}"
            )

    @property
    def num_shards(self) -> int:
        """Files matched."""
        return len(self.paths)

    def rows(self, shard: int, start: int) -> Iterator[Row]:
        """See `ShardSource`. A damaged file ends at the damage, with one bad row."""
        with gzip.open(self.paths[shard], "rb") as lines:
            try:
                for line in islice(lines, start, None):
                    yield parse_line(line)
            except (EOFError, gzip.BadGzipFile, zlib.error):
                yield BadRow.DAMAGED_GZIP


def open_shards(config: DataConfig, split: Split) -> ShardSource:
    """The shards that the config names for a split.

    Raises:
        ValueError: no file, or no such Hub dataset.
        ConnectionError: the Hub cannot be reached.
    """
    if config.source == "hub":
        from data.hub import HubShards

        return HubShards(config, split)
    if split == "train":
        return LocalShards("data.train_files", config.train_files)
    return LocalShards("data.validation_files", config.validation_files)


class Corpus:
    """Shards dealt to streams: shard i belongs to stream i % num_streams.

    Args:
        source: the shards.
        num_streams: logical streams.
        seed: of the shard order, drawn anew for each stream and epoch; None keeps the source's order.

    Raises:
        ValueError: fewer shards than streams.
    """

    def __init__(self, source: ShardSource, num_streams: int, seed: int | None) -> None:
        if source.num_shards < num_streams:
            raise ValueError(
                f"data.num_streams = {num_streams} is more than the {source.num_shards} shards of {source.key}: "
                f"set data.num_streams to at most {source.num_shards}, or make more shards (`python -m data.prepare "
                "--shards`)"
            )
        self.source = source
        self.num_streams = num_streams
        self.seed = seed

    def shard_order(self, stream: int, epoch: int) -> list[int]:
        """Shards of a stream in the order in which an epoch reads them."""
        shards = np.arange(stream, self.source.num_shards, self.num_streams)
        if self.seed is not None:
            np.random.default_rng([SHARD_ORDER, self.seed, stream, epoch]).shuffle(shards)
        return [int(shard) for shard in shards]

    def rows(self, stream: int, position: Position) -> Iterator[tuple[Row, Position]]:
        """Rows of a stream from a position to the end of its epoch, each with the position after it."""
        epoch, first_shard, first_row = position
        for index, shard in enumerate(self.shard_order(stream, epoch)):
            if index < first_shard:
                continue
            start = first_row if index == first_shard else 0
            for row, content in enumerate(self.source.rows(shard, start), start + 1):
                yield content, Position(epoch, index, row)
