"""A small generated language, a vocabulary trained on it, and C4-layout files of it."""

import functools
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data.config import DataConfig
from data.streaming.loader import PretrainingLoader
from data.tokenizer import Tokenizer, train_vocabulary

MakeTexts = Callable[..., list[str]]
WriteShards = Callable[[Path, Sequence[Sequence[str | bytes]]], str]


@functools.cache
def _language() -> NDArray[np.str_]:
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return np.array(["".join(np.random.default_rng(i).choice(letters, 2 + i % 6)) for i in range(400)])


def _make_texts(count: int, seed: int = 0, words: int = 40) -> list[str]:
    rng = np.random.default_rng(seed)
    return [
        " ".join(rng.choice(_language(), int(rng.integers(1, words)))) + f" {seed}.{number}." for number in range(count)
    ]


def _write_shards(folder: Path, shards: Sequence[Sequence[str | bytes]]) -> str:
    """Write texts as JSON lines and bytes unchanged; return the glob of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(shards):
        lines = [row if isinstance(row, bytes) else json.dumps({"text": row}).encode() for row in rows]
        with gzip.open(folder / f"part-{number:05d}.json.gz", "wb") as file:
            file.write(b"".join(line + b"\n" for line in lines))
    return str(folder / "*.json.gz")


@pytest.fixture(scope="session")
def make_texts() -> MakeTexts:
    return _make_texts


@pytest.fixture(scope="session")
def write_shards() -> WriteShards:
    return _write_shards


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    train_vocabulary(_make_texts(400, seed=1), 300, folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(vocabulary: Path) -> Tokenizer:
    return Tokenizer(vocabulary)


@pytest.fixture(scope="session")
def train_files(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight shards of 10 to 17 documents."""
    shards = [_make_texts(10 + i, seed=100 + i) for i in range(8)]
    return _write_shards(tmp_path_factory.mktemp("train"), shards)


@pytest.fixture(scope="session")
def make_config(train_files: str, vocabulary: Path) -> Callable[..., DataConfig]:
    def make(**settings: Any) -> DataConfig:
        small: dict[str, Any] = {
            "train_files": train_files,
            "vocabulary": str(vocabulary),
            "inputs_length": 64,
            "documents_per_pack": 3,
            "num_streams": 4,
            "num_workers": 0,
        }
        return DataConfig(**(small | settings))

    return make


@pytest.fixture
def make_loader(make_config: Callable[..., DataConfig], tokenizer: Tokenizer) -> Callable[..., PretrainingLoader]:
    def make(rank: int = 0, world_size: int = 1, batch_size: int = 4, **settings: Any) -> PretrainingLoader:
        return PretrainingLoader(
            make_config(**settings), tokenizer, rank=rank, world_size=world_size, batch_size=batch_size
        )

    return make
