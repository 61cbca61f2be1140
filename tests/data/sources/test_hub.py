"""Hub sources: ``datasets`` streams from files and from a failing server with the Hub's API."""

import glob
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from common.project import ROOT
from data.config import DataConfig
from data.sources.files import FileShards
from data.sources.hub import HubShards, open_hub
from data.sources.retry import DataError, Retries
from data.sources.rows import BadRow
from data.streaming.loader import PretrainingLoader
from data.streaming.validation import validation_batches
from data.tokenizer import Tokenizer
from tests.support.faulty_server import serve

(HUB,) = DataConfig(source="hub").train_sources()


def no_retries() -> Retries:
    return Retries(0, 0.0)


def open_files(pattern: str) -> FileShards:
    return FileShards.matching("k", pattern, "text", no_retries(), 1024)


def stream(pattern: str, retries: Retries | None = None) -> HubShards:
    return HubShards("k", stream_files(pattern), "text", retries or no_retries())


def stream_files(pattern: str) -> Any:
    import datasets

    return datasets.load_dataset("json", data_files=sorted(glob.glob(pattern)), split="train", streaming=True)


def test_rows_equal_those_of_the_files_from_any_row(train_files: str) -> None:
    local, hub = open_files(train_files), stream(train_files)
    assert hub.num_shards == local.num_shards == 8
    for shard in (0, 3, 7):
        for start in (0, 1, 9, 10, 17, 30):
            assert list(hub.rows(shard, start)) == list(local.rows(shard, start))


def test_records_without_text_are_counted_by_kind() -> None:
    import datasets

    records = [{"text": "good"}, {"text": None}, {"text": " "}, {"text": "also good"}]
    dataset = datasets.Dataset.from_list(records).to_iterable_dataset()
    hub = HubShards("k", dataset, "text", no_retries())
    assert list(hub.rows(0, 0)) == ["good", BadRow.MISSING_TEXT, BadRow.EMPTY_TEXT, "also good"]


def test_another_column_and_a_missing_one() -> None:
    import datasets

    dataset = datasets.Dataset.from_list([{"content": "x", "n": 1}]).to_iterable_dataset()

    def rows(column: str) -> list[Any]:
        return list(HubShards("k", dataset, column, no_retries()).rows(0, 0))

    assert rows("content") == ["x"]
    assert rows("n") == [BadRow.NON_STRING_TEXT]
    with pytest.raises(DataError, match=r"has no column 'text': set text_column to one of content, n$"):
        rows("text")


def test_broken_connections_lose_and_repeat_nothing(train_files: str) -> None:
    waits: list[float] = []
    retries = Retries(1, 2.0, sleep=waits.append)
    hub = stream(train_files, retries)
    hub._dataset = Breaking(hub._dataset, rows=4, failures=3)
    assert list(hub.rows(7, 2)) == list(open_files(train_files).rows(7, 2))
    assert len(waits) == retries.counts["OSError"] == 3
    assert all(1.0 <= wait <= 3.0 for wait in waits) and len(set(waits)) == 3


def test_a_dead_connection_is_one_clear_error_after_growing_waits(train_files: str) -> None:
    waits: list[float] = []
    hub = stream(train_files, Retries(6, 1.0, sleep=waits.append))
    hub._dataset = Breaking(hub._dataset, rows=0, failures=1000)
    with pytest.raises(
        DataError,
        match=r"k: shard 2 of 8 cannot be read beyond row 0 after 7 attempts: .*OSError: connection reset by peer",
    ) as caught:
        next(hub.rows(2, 0))
    assert "\n" not in str(caught.value)
    assert [2.0**i / 2 <= wait <= 2.0**i * 1.5 for i, wait in enumerate(waits)] == [True] * 6


class Breaking:
    """A dataset whose connection breaks at row ``rows``, then 3 rows later and so on, ``failures`` times in all."""

    def __init__(self, dataset: Any, rows: int, failures: int, left: list[int] | None = None) -> None:
        self.dataset, self.left = dataset, left or [rows, failures]
        self.num_shards = dataset.num_shards

    def shard(self, **place: int) -> "Breaking":
        return Breaking(self.dataset.shard(**place), 0, 0, self.left)

    def with_format(self, name: str) -> "Breaking":
        return Breaking(self.dataset.with_format(name), 0, 0, self.left)

    def iter(self, batch_size: int) -> Iterator[Any]:
        for row, table in enumerate(self.dataset.iter(batch_size=1)):
            if row == self.left[0] and self.left[1]:
                self.left[0] += 3 if self.left[1] < 100 else 0
                self.left[1] -= 1
                raise OSError("connection reset\nby peer")
            yield table


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ConnectionError("Couldn't reach\n'allenai/c4'"),
            r"^data\.hub_dataset = 'allenai/c4' \(en, train\) .*data\.source=files",
        ),
        (ValueError("BuilderConfig 'xx' not found"), r"check data\.hub_dataset, its configuration, revision"),
    ],
)
def test_a_hub_that_cannot_be_opened_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset_builder", Mock(side_effect=error))
    with pytest.raises(DataError, match=message) as caught:
        open_hub(HUB, no_retries(), 1 << 20)
    assert "\n" not in str(caught.value)
    datasets.load_dataset_builder.assert_called_once_with("allenai/c4", "en", revision=HUB.keys.hub_revision)


def test_batches_and_resume_equal_those_of_the_files(
    make_config: Callable[..., DataConfig], tokenizer: Tokenizer, train_files: str
) -> None:
    def loader(source: Any) -> PretrainingLoader:
        sources = None if source is None else [source]
        return PretrainingLoader(make_config(), tokenizer, rank=0, world_size=1, batch_size=3, sources=sources)

    local, streamed = loader(None), loader(stream(train_files))
    for step in range(60):
        expected = local.next_batch()
        if step % 7 == 3:
            state = json.loads(json.dumps(streamed.state_dict()))
            streamed = loader(stream(train_files))
            streamed.load_state_dict(state)
        actual = streamed.next_batch()
        np.testing.assert_equal(actual, expected)
    assert streamed.epoch >= 1
    sizes: dict[str, Any] = {"rank": 0, "world_size": 1, "batch_size": 2, "num_batches": 3}
    np.testing.assert_equal(
        validation_batches(make_config(), tokenizer, sources=[stream(train_files)], **sizes),
        validation_batches(make_config(), tokenizer, sources=[open_files(train_files)], **sizes),
    )


READ_ALL = """
import json, sys
from data.config import DataConfig
from data.sources.open import open_shards
out = []
for settings in json.loads(sys.argv[1]):
    config = DataConfig(source="hub", retries=50, retry_seconds=0.01, hub_revision="15" * 20, **settings)
    (source,) = config.train_sources()
    shards = open_shards(config, source)
    rows = [[str(row) for row in shards.rows(shard, 5)] for shard in range(shards.num_shards)]
    out.append([type(shards).__name__, rows])

from data.sources.hub import HubShards, import_datasets
from data.sources.retry import Retries
files = [sys.argv[2] + f"/datasets/allenai/c4/resolve/main/en/c4-train.{i:05d}-of-00003.json.gz" for i in range(3)]
stream = import_datasets().load_dataset("json", data_files=files, split="train", streaming=True)
shards = HubShards("data_files", stream, "text", Retries(50, 0.01))
out.append([type(shards).__name__, [list(shards.rows(shard, 5)) for shard in range(3)]])
print(json.dumps(out))
"""


def test_c4_from_a_server_that_answers_as_the_hub_and_fails(tmp_path: Path) -> None:
    """``datasets`` itself, in a process of its own, resolves repositories, and streams C4's layout and Parquet."""
    repository = tmp_path / "hub" / "allenai" / "c4"
    (repository / "de").mkdir(parents=True)
    (repository / "en").mkdir()
    texts = [[f"row {shard} {row} " + "ü\u2028 " * row for row in range(200)] for shard in range(3)]
    for shard, rows in enumerate(texts):
        lines = [json.dumps({"text": text, "url": "x"}, ensure_ascii=False).encode() for text in rows]
        clean = gzip.compress(b"\n".join(lines) + b"\n")
        (repository / "en" / f"c4-train.{shard:05d}-of-00003.json.gz").write_bytes(clean)
        lines[100] = b'{"text": "broken'
        lines[150] = b'{"text": "\xff"}'
        blob = gzip.compress(b"\n".join(lines) + b"\n")
        (repository / "de" / f"c4-train.{shard:05d}-of-00003.json.gz").write_bytes(blob)
    (repository / "de" / "c4-validation.00000-of-00001.json.gz").write_bytes(gzip.compress(b'{"text": "v"}\n'))
    (repository / "README.md").write_text(
        "---\nconfigs:\n- config_name: de\n  data_files:\n  - {split: train, path: de/c4-train.*.json.gz}\n"
        "  - {split: validation, path: de/c4-validation.*.json.gz}\n---\n# C4\n"
    )
    tables = tmp_path / "hub" / "owner" / "books" / "data"
    tables.mkdir(parents=True)
    for shard, rows in enumerate(texts):
        table = pyarrow.table({"title": rows, "body": rows})
        pyarrow.parquet.write_table(table, tables / f"train-{shard:05d}-of-00003.parquet", row_group_size=50)
    asked = [{"hub_config": "de"}, {"hub_dataset": "owner/books", "hub_config": None, "text_column": "body"}]
    with serve(tmp_path / "hub", fault_rate=0.3, seed=2) as server:
        environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", READ_ALL, json.dumps(asked), server.url]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr[-3000:]
        c4, books, plain = json.loads(result.stdout)
        assert server.faults.total() > 0
    expected = [rows[5:] for rows in texts]
    assert books == plain == ["HubShards", expected]
    for rows in expected:
        rows[95], rows[145] = str(BadRow.MALFORMED_JSON), str(BadRow.INVALID_UTF8)
    assert c4 == ["FileShards", expected]
