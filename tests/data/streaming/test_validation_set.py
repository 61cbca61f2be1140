"""The fixed validation examples."""

import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.once_per_host import Launch
from data.config import DataConfig
from data.sources.retry import DataError
from data.streaming.validation import validation_batches
from data.tokenizer import Tokenizer


@pytest.fixture
def config(
    tmp_path: Path, make_config: Callable[..., DataConfig], make_texts: Callable[..., list[str]],
    write_shards: Callable[..., str],
) -> DataConfig:  # fmt: skip
    pattern = write_shards(tmp_path, [make_texts(20, seed=7), make_texts(10, seed=8)])
    return make_config(validation_files=pattern)


def take(config: DataConfig, tokenizer: Tokenizer, **sizes: Any) -> list[Any]:
    """Rows of every rank, in the order of the global examples."""
    world_size = sizes["world_size"]
    ranks = [validation_batches(config, tokenizer, rank=rank, **sizes) for rank in range(world_size)]
    rows = [
        [
            (i.tolist(), t.tolist())
            for batch in batches
            for i, t in zip(batch["input_ids"], batch["labels"], strict=True)
        ]
        for batches in ranks
    ]
    return [row for group in zip(*rows, strict=True) for row in group]


def test_every_call_and_world_size_gives_the_same_examples(config: DataConfig, tokenizer: Tokenizer) -> None:
    single = take(config, tokenizer, world_size=1, batch_size=4, num_batches=3)
    assert len(single) == 12
    assert len({str(row) for row in single}) == 12
    assert take(config, tokenizer, world_size=1, batch_size=4, num_batches=3) == single
    assert take(config, tokenizer, world_size=2, batch_size=2, num_batches=3) == single
    assert take(config, tokenizer, world_size=4, batch_size=1, num_batches=3) == single
    assert take(config, tokenizer, world_size=3, batch_size=4, num_batches=1) == single


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("wanted", [16, 999])
def test_ranks_that_share_one_reading_get_the_same(
    domains: DataConfig, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, world_size: int, wanted: int,
) -> None:  # fmt: skip
    """With all examples there, and where one domain ends early; each document is tokenized once."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    encoded: list[str] = []
    encode_batch = tokenizer.encode_batch

    def counted(texts: list[str]) -> list[Any]:
        encoded.extend(texts)
        return encode_batch(texts)

    monkeypatch.setattr(tokenizer, "encode_batch", counted)
    sizes: dict[str, Any] = {"world_size": world_size, "batch_size": 1, "num_batches": wanted // world_size}

    def of_rank(rank: int, launch: Launch | None) -> list[Any]:
        return validation_batches(domains, tokenizer, rank=rank, launch=launch, **sizes)

    alone = [of_rank(rank, None) for rank in range(world_size)]
    notices, texts = caplog.messages.copy(), len(encoded) // world_size
    assert len(notices) == world_size * (wanted == 999)
    caplog.clear()
    encoded.clear()
    launch = Launch("a launch", world_size)
    with ThreadPoolExecutor(world_size) as pool:
        shared = list(pool.map(lambda rank: of_rank(rank, launch), range(world_size)))
    assert len(encoded) == texts and caplog.messages == notices
    for one, other in zip(alone, shared, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.keys() == b.keys() and a["input_ids"].shape == (1, 64)
            assert all((a[name] == b[name]).all() and a[name].dtype == b[name].dtype for name in a)
    (base,) = tmp_path.glob("st-moe-*")
    assert not [*base.iterdir()], "removed when all have read it"


def test_all_ranks_that_share_a_reading_are_told_its_error(
    config: DataConfig, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    calls: list[int] = []

    def broken(texts: list[str]) -> list[Any]:
        calls.append(1)
        raise DataError("a file is broken")

    monkeypatch.setattr(tokenizer, "encode_batch", broken)
    sizes: dict[str, Any] = {"world_size": 2, "batch_size": 1, "num_batches": 1, "launch": Launch("a launch", 2)}
    for rank in range(2):
        with pytest.raises(DataError, match=r"^a file is broken$"):
            validation_batches(config, tokenizer, rank=rank, **sizes)
    assert len(calls) == 1


def test_examples_start_with_the_first_text_in_file_order(
    config: DataConfig, tokenizer: Tokenizer, make_texts: Callable[..., list[str]]
) -> None:
    (batch,) = validation_batches(config, tokenizer, rank=0, world_size=1, batch_size=1, num_batches=1)
    assert batch["input_ids"].shape == (1, 64)
    first = tokenizer.encode_batch(make_texts(20, seed=7))[0]
    assert batch["input_ids"][0, 0] == first[0]


def test_masks_follow_the_seed(
    config: DataConfig, tokenizer: Tokenizer, make_config: Callable[..., DataConfig]
) -> None:
    other = make_config(validation_files=config.validation_files, seed=1)
    sizes: dict[str, Any] = {"rank": 0, "world_size": 1, "batch_size": 8, "num_batches": 1}
    same = validation_batches(config, tokenizer, **sizes)[0]["input_ids"]
    assert (validation_batches(other, tokenizer, **sizes)[0]["input_ids"] != same).any()


def test_a_small_split_gives_all_its_complete_batches_with_a_notice(
    config: DataConfig, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    sizes: dict[str, Any] = {"world_size": 2, "batch_size": 2}
    ranks = [validation_batches(config, tokenizer, rank=rank, num_batches=500, **sizes) for rank in range(2)]
    found = re.search(r"training\.eval_examples = 2000, but .* has (\d+) examples: (\d+) are used", caplog.text)
    assert found is not None
    examples, used = int(found[1]), int(found[2])
    assert examples - 4 < used <= examples and used % 4 == 0
    assert [len(batches) for batches in ranks] == [used // 4] * 2
    caplog.clear()
    exact = validation_batches(config, tokenizer, rank=1, num_batches=used // 4, **sizes)
    assert not caplog.text
    for one, other in zip(ranks[1], exact, strict=True):
        assert (one["input_ids"] == other["input_ids"]).all() and one["input_ids"].shape[0] == 2


def test_a_split_without_one_batch_is_an_error(config: DataConfig, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"^data\.validation_files = .* too few for one batch of 5000"):
        validation_batches(config, tokenizer, rank=0, world_size=1, batch_size=5000, num_batches=1)


@pytest.fixture
def domains(
    tmp_path: Path, make_config: Callable[..., DataConfig], make_texts: Callable[..., list[str]],
    write_shards: Callable[..., str],
) -> DataConfig:  # fmt: skip
    """Three domains; the second is far smaller than the others."""
    files = {
        name: write_shards(tmp_path / name, [make_texts(n, seed=n)]) for name, n in zip("abc", (40, 4, 30), strict=True)
    }
    return make_config(validation_files=files)


def test_domains_are_mixed_evenly_in_the_same_order_at_every_world_size(
    domains: DataConfig, tokenizer: Tokenizer, make_config: Callable[..., DataConfig]
) -> None:
    assert isinstance(domains.validation_files, dict)
    single = take(domains, tokenizer, world_size=1, batch_size=6, num_batches=1)
    for world_size, batch_size in ((2, 3), (3, 2), (6, 1)):
        sizes: dict[str, Any] = {"world_size": world_size, "batch_size": batch_size, "num_batches": 1}
        assert take(domains, tokenizer, **sizes) == single
        of_ranks = [
            validation_batches(domains, tokenizer, rank=rank, **sizes)[0]["domain"] for rank in range(world_size)
        ]
        assert np.stack(of_ranks, 1).flatten().tolist() == [0, 1, 2, 1, 2, 0]
    alone = make_config(validation_files=domains.validation_files["a"])
    assert take(alone, tokenizer, world_size=1, batch_size=2, num_batches=1) == [single[0], single[5]]


def test_a_single_split_has_no_domains(config: DataConfig, tokenizer: Tokenizer) -> None:
    (batch,) = validation_batches(config, tokenizer, rank=0, world_size=1, batch_size=2, num_batches=1)
    assert batch.keys() == {"input_ids", "labels"} and config.validation_domains() == []


def test_the_smallest_domain_limits_the_others_with_a_notice(
    domains: DataConfig, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    batches = validation_batches(domains, tokenizer, rank=0, world_size=1, batch_size=1, num_batches=999)
    counts = np.bincount([batch["domain"][0] for batch in batches])
    assert max(counts) - min(counts) <= 1 and len(batches) == sum(counts)
    assert re.search(
        r"data\.validation_files\[b\] = .* has (\d+) examples: (\d+) are used, as many of each", caplog.text
    )


def test_fewer_examples_than_domains_are_an_error(domains: DataConfig, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"^training.eval_examples = 2 is less than the 3 domains .*eval_examples=4$"):
        validation_batches(domains, tokenizer, rank=0, world_size=2, batch_size=1, num_batches=1)


def test_missing_files_name_their_key(make_config: Callable[..., DataConfig], tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"^data\.validation_files = 'none\*' matches no file"):
        validation_batches(
            make_config(validation_files="none*"), tokenizer, rank=0, world_size=1, batch_size=1, num_batches=1
        )
