"""Exact resume, and the same data for any number of ranks."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import DataConfig
from data.sources.files import FileShards
from data.sources.retry import DataError, Retries
from data.sources.rows import Row
from data.streaming.loader import Batch, PretrainingLoader, merge_states
from data.tokenizer import Tokenizer

MakeConfig = Callable[..., DataConfig]
MakeLoader = Callable[..., PretrainingLoader]
WriteShards = Callable[..., str]


def rows_of(batch: Batch) -> list[tuple[list[int], list[int]]]:
    return list(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True))


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55])
def test_resume_is_bit_exact(make_loader: MakeLoader, steps: int) -> None:
    loader = make_loader(batch_size=3)
    for _ in range(steps):
        loader.next_batch()
    state = json.loads(json.dumps(loader.state_dict()))
    resumed = make_loader(batch_size=3)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert (resumed.documents, resumed.tokens) == (loader.documents, loader.tokens)
    for _ in range(40):
        np.testing.assert_equal(resumed.next_batch(), loader.next_batch())
    assert resumed.state_dict() == loader.state_dict()
    assert (resumed.documents, resumed.tokens, resumed.epoch) == (loader.documents, loader.tokens, loader.epoch)


def test_the_state_is_small(make_loader: MakeLoader) -> None:
    loader = make_loader(documents_per_pack=1000)
    for _ in range(3):
        loader.next_batch()
    assert len(json.dumps(loader.state_dict()["streams"])) < 4 * 300


def global_steps(make_loader: MakeLoader, world_size: int, steps: int) -> list[list[Any]]:
    loaders = [make_loader(rank=r, world_size=world_size, batch_size=8 // world_size) for r in range(world_size)]
    return [sorted(row for loader in loaders for row in rows_of(loader.next_batch())) for _ in range(steps)]


def test_every_world_size_sees_the_same_set_at_each_step(make_loader: MakeLoader) -> None:
    single = global_steps(make_loader, 1, 25)
    assert global_steps(make_loader, 2, 25) == single
    assert global_steps(make_loader, 4, 25) == single


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 2), (2, 1)])
def test_resume_at_another_world_size(make_loader: MakeLoader, before: int, after: int) -> None:
    expected = global_steps(make_loader, 1, 25)
    first = [make_loader(rank=r, world_size=before, batch_size=8 // before) for r in range(before)]
    for _ in range(11):
        for loader in first:
            loader.next_batch()
    state = json.loads(json.dumps(merge_states([loader.state_dict() for loader in reversed(first)])))
    second = [make_loader(rank=r, world_size=after, batch_size=8 // after) for r in range(after)]
    for loader in second:
        loader.load_state_dict(state)
    assert sum(loader.tokens for loader in second) == sum(loader.tokens for loader in first)
    for step in range(11, 25):
        assert sorted(row for loader in second for row in rows_of(loader.next_batch())) == expected[step]


def test_resume_with_another_batch_size_skips_and_repeats_nothing(make_loader: MakeLoader) -> None:
    expected = [row for step in global_steps_in_order(make_loader, 8, 12) for row in step]
    loader = make_loader(batch_size=3)
    seen = [row for _ in range(5) for row in rows_of(loader.next_batch())]
    resumed = make_loader(batch_size=5)
    resumed.load_state_dict(loader.state_dict())
    seen += [row for _ in range(10) for row in rows_of(resumed.next_batch())]
    assert seen == expected[: len(seen)]
    pair = [make_loader(rank=rank, world_size=2, batch_size=2) for rank in range(2)]
    for other in pair:
        other.load_state_dict(merge_states([loader.state_dict()]))
    assert loader.state_dict()["next_example"] == 15
    assert sorted(row for other in pair for row in rows_of(other.next_batch())) == sorted(expected[15:19])


def global_steps_in_order(make_loader: MakeLoader, batch_size: int, steps: int) -> list[list[Any]]:
    loader = make_loader(batch_size=batch_size)
    return [rows_of(loader.next_batch()) for _ in range(steps)]


def test_bad_rows_are_counted_once_across_a_resume(
    tmp_path: Path, make_loader: MakeLoader, write_shards: WriteShards, make_texts: Callable[..., list[str]],
    tokenizer: Tokenizer,
) -> None:  # fmt: skip
    def shard(seed: int) -> list[str | bytes]:
        rows: list[str | bytes] = [b"", *make_texts(4, seed=seed), b"{", b'{"text": 1}']
        return [*rows, *make_texts(5, seed=seed + 50), b'{"text": "\xff"}', b"{}", b'{"text": ""}', b""]

    pattern = write_shards(tmp_path, [shard(seed) for seed in range(3)])
    settings: dict[str, Any] = {
        "train_files": pattern,
        "num_streams": 1,
        "documents_per_pack": 2,
        "batch_size": 1,
        "max_bad_fraction": 1.0,
    }
    loader = make_loader(**settings)
    assert loader.bad_rows == {}
    while loader.epoch == 0:
        loader.next_batch()
        resumed = make_loader(**settings)
        resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        assert resumed.bad_rows == loader.bad_rows
        loader = resumed
    # The pack that ended epoch 0 was the last thing read.
    assert loader.documents == 27
    texts = [text for seed in range(3) for text in [*make_texts(4, seed=seed), *make_texts(5, seed=seed + 50)]]
    assert loader.tokens == sum(map(len, tokenizer.encode_batch(texts)))
    assert loader.bad_rows == {
        "blank_line": 6, "invalid_utf8": 3, "malformed_json": 3, "missing_text": 3, "non_string_text": 3,
        "empty_text": 3,
    }  # fmt: skip


class BreaksNowAndThen(FileShards):
    """Some reads of a shard fail at their third row."""

    opened = 0

    def rows(self, shard: int, start: int) -> Iterator[Row]:
        self.opened += 1
        breaks = self.opened in (3, 4, 11, 17, 30)
        for number, row in enumerate(super().rows(shard, start)):
            if breaks and number == 2:
                raise DataError("broken")
            yield row


def test_a_failed_batch_takes_nothing(
    make_config: MakeConfig, tokenizer: Tokenizer, train_files: str, make_loader: MakeLoader
) -> None:
    source = BreaksNowAndThen.matching("k", train_files, "text", Retries(0, 0.0), 1024)
    loader = PretrainingLoader(make_config(), tokenizer, rank=0, world_size=1, batch_size=6, sources=[source])
    whole = make_loader(batch_size=6)
    failures = 0
    for _ in range(40):
        before, batch = loader.state_dict(), None
        while batch is None:
            try:
                batch = loader.next_batch()
            except DataError:
                failures += 1
                assert loader.state_dict() == before
        np.testing.assert_equal(batch, whole.next_batch())
    assert failures == 5
    assert loader.state_dict() == whole.state_dict()


def test_states_of_other_settings_ranks_or_steps_are_refused(make_loader: MakeLoader) -> None:
    ranks = [make_loader(rank=r, world_size=2) for r in range(2)]
    states = [loader.state_dict() for loader in ranks]
    state = merge_states(states)
    older = state | {"identity": {k: v for k, v in state["identity"].items() if not k.startswith("version")}}
    with pytest.raises(ValueError, match=r"examples = \d, but the checkpoint was made with None"):
        make_loader().load_state_dict(older)
    with pytest.raises(ValueError, match=r"data\.seed = 1, but the checkpoint was made with 0"):
        make_loader(seed=1).load_state_dict(merge_states(states))
    with pytest.raises(ValueError, match=r"lacks streams \[1, 3\]"):
        make_loader().load_state_dict(states[0])
    with pytest.raises(ValueError, match="two data states hold the streams"):
        merge_states([states[0], states[0]])
    ranks[1].next_batch()
    with pytest.raises(ValueError, match="next_example"):
        merge_states([states[0], ranks[1].state_dict()])
    with pytest.raises(ValueError, match="no data state"):
        merge_states([])
    own = make_loader(rank=1, world_size=2)
    own.load_state_dict(ranks[1].state_dict())
    np.testing.assert_equal(own.next_batch(), ranks[1].next_batch())


def test_changed_files_are_noticed_on_resume(
    tmp_path: Path, make_loader: MakeLoader, make_texts: Callable[..., list[str]], write_shards: WriteShards
) -> None:
    settings: dict[str, Any] = {"num_streams": 1, "documents_per_pack": 20, "batch_size": 4}
    loader = make_loader(train_files=write_shards(tmp_path, [make_texts(20)]), **settings)
    loader.next_batch()
    shorter = write_shards(tmp_path, [["tiny"]])
    resumed = make_loader(train_files=shorter, **settings)
    resumed.load_state_dict(loader.state_dict())
    with pytest.raises(ValueError, match="gave 4 chunks of a pack that now has 1"):
        resumed.next_batch()
