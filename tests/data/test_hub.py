"""The Hub's code path on local files: `datasets` streaming, resume, broken connections, errors."""

import glob
import json
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from data.config import DataConfig
from data.corpus import BadRow, LocalShards
from data.hub import ATTEMPTS, HubShards
from data.loader import PretrainingLoader, validation_batches
from data.tokenizer import Tokenizer

HUB = DataConfig(source="hub")


def stream_files(pattern: str) -> Any:
    import datasets

    return datasets.load_dataset("json", data_files=sorted(glob.glob(pattern)), split="train", streaming=True)


class Flaky:
    """A dataset whose connection breaks after every `rows` rows, `failures` times in all."""

    def __init__(self, dataset: Any, rows: int, failures: int) -> None:
        self.dataset, self.rows, self.left = dataset, rows, [failures]
        self.num_shards = dataset.num_shards

    def shard(self, num_shards: int, index: int) -> "Flaky":
        part = Flaky(self.dataset.shard(num_shards=num_shards, index=index), self.rows, 0)
        part.left = self.left
        return part

    def skip(self, count: int) -> Iterator[Any]:
        for number, record in enumerate(self.dataset.skip(count)):
            if number == self.rows and self.left[0]:
                self.left[0] -= 1
                raise OSError("connection reset\nby peer")
            yield record


def test_rows_equal_those_of_the_files_from_any_row(train_files: str) -> None:
    local = LocalShards("data.train_files", train_files)
    hub = HubShards(HUB, "train", load=lambda config, split: stream_files(train_files))
    assert hub.num_shards == local.num_shards == 8
    for shard in (0, 3, 7):
        for start in (0, 1, 9, 10, 17, 30):
            assert list(hub.rows(shard, start)) == list(local.rows(shard, start))


def test_records_without_text_are_counted_by_kind() -> None:
    import datasets

    records = [{"text": "good"}, {"text": None}, {"text": " "}, {"text": "also good"}]
    dataset = datasets.Dataset.from_list(records).to_iterable_dataset()
    rows = list(HubShards(HUB, "train", load=lambda config, split: dataset).rows(0, 0))
    assert rows == ["good", BadRow.MISSING_TEXT, BadRow.EMPTY_TEXT, "also good"]


@pytest.mark.parametrize("rows", [1, 4])
def test_broken_connections_lose_and_repeat_nothing(train_files: str, rows: int) -> None:
    waits: list[float] = []
    flaky = Flaky(stream_files(train_files), rows, 3)
    hub = HubShards(HUB, "train", load=lambda config, split: flaky, sleep=waits.append)
    assert list(hub.rows(7, 2)) == list(LocalShards("k", train_files).rows(7, 2))
    assert waits == [1.0, 1.0, 1.0]


def test_a_dead_connection_is_one_clear_error_after_growing_waits(train_files: str) -> None:
    waits: list[float] = []
    flaky = Flaky(stream_files(train_files), 0, 1000)
    hub = HubShards(HUB, "train", load=lambda config, split: flaky, sleep=waits.append)
    with pytest.raises(
        ConnectionError, match=r"shard 2 cannot be read beyond row 0 .*OSError: connection reset by peer"
    ):
        next(hub.rows(2, 0))
    assert waits == [2.0**i for i in range(ATTEMPTS - 1)]


def test_an_unreachable_hub_is_one_clear_error() -> None:
    def unreachable(config: DataConfig, split: str) -> Any:
        raise ConnectionError("Couldn't reach\n'allenai/c4'")

    with pytest.raises(ConnectionError, match=r"^data\.hub_dataset = 'allenai/c4' \(en, train\) .*source=local.*$"):
        HubShards(HUB, "train", load=unreachable)


def test_a_wrong_configuration_is_the_users_mistake() -> None:
    def wrong(config: DataConfig, split: str) -> Any:
        raise ValueError("BuilderConfig 'xx' not found")

    with pytest.raises(ValueError, match=r"check data\.hub_dataset, data\.hub_config"):
        HubShards(HUB, "train", load=wrong)


def test_the_default_loader_pins_the_revision(monkeypatch: pytest.MonkeyPatch, train_files: str) -> None:
    import datasets

    load = Mock(return_value=stream_files(train_files))
    monkeypatch.setattr(datasets, "load_dataset", load)
    HubShards(HUB, "validation")
    load.assert_called_once_with("allenai/c4", "en", split="validation", revision=HUB.hub_revision, streaming=True)


def test_batches_and_resume_equal_those_of_the_files(
    make_config: Callable[..., DataConfig], tokenizer: Tokenizer, train_files: str
) -> None:
    def loader(source: Any) -> PretrainingLoader:
        return PretrainingLoader(make_config(), tokenizer, rank=0, world_size=1, batch_size=3, source=source)

    def hub() -> HubShards:
        return HubShards(HUB, "train", load=lambda config, split: stream_files(train_files))

    local, streamed = loader(None), loader(hub())
    for step in range(60):
        expected = local.next_batch()
        if step % 7 == 3:
            state = json.loads(json.dumps(streamed.state_dict()))
            streamed = loader(hub())
            streamed.load_state_dict(state)
        actual = streamed.next_batch()
        np.testing.assert_equal(actual, expected)
    assert streamed.epoch >= 1
    sizes: dict[str, Any] = {"rank": 0, "world_size": 1, "batch_size": 2, "num_batches": 3}
    files = LocalShards("k", train_files)
    np.testing.assert_equal(
        validation_batches(make_config(), tokenizer, source=hub(), **sizes),
        validation_batches(make_config(), tokenizer, source=files, **sizes),
    )
