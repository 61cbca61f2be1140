"""Small data sets of ``python -m data.prepare``."""

import gzip
import json
from pathlib import Path

SMALL = ["--vocab-size", "200", "--shards", "4", "--validation-fraction", "0.1"]


def read_file(path: Path) -> list[str]:
    """Return the texts of a shard."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def read(folder: Path) -> list[str]:
    """Return the texts of all shards of a folder."""
    return [text for path in sorted(folder.iterdir()) for text in read_file(path)]
