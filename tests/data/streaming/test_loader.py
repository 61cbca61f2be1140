"""Content and order of training batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import DataConfig
from data.span_corruption import corrupt, random_spans_masks, raw_and_target_lengths
from data.streaming.loader import Batch, PretrainingLoader
from data.tokenizer import Tokenizer
from tests.support.examples import raw_tokens

MakeConfig = Callable[..., DataConfig]
MakeLoader = Callable[..., PretrainingLoader]
WriteShards = Callable[..., str]


def rows_of(batch: Batch) -> list[tuple[list[int], list[int]]]:
    return list(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True))


def test_shapes_and_padding(make_loader: MakeLoader, tokenizer: Tokenizer) -> None:
    loader = make_loader()
    raw, targets = raw_and_target_lengths(64, 0.15, 3.0)
    for _ in range(20):
        batch = loader.next_batch()
        assert batch.keys() == {"input_ids", "labels"}
        assert batch["input_ids"].dtype == batch["labels"].dtype == np.int64
        assert batch["input_ids"].shape == (4, 64) and batch["labels"].shape == (4, targets)
        for inputs, labels in rows_of(batch):
            assert inputs.count(1) == labels.count(1) == 1
            assert 0 not in inputs[: inputs.index(1)] and not any(inputs[inputs.index(1) + 1 :])
            assert set(labels[labels.index(1) + 1 :]) <= {-100}
            assert len(raw_tokens(inputs, labels, tokenizer)) <= raw
            assert inputs[0] < tokenizer.num_pieces and labels[0] == tokenizer.first_sentinel_id


def test_examples_are_the_concatenated_documents_cut_at_the_raw_length(
    tmp_path: Path, make_loader: MakeLoader, make_texts: Callable[..., list[str]], write_shards: WriteShards,
    tokenizer: Tokenizer,
) -> None:  # fmt: skip
    """One shard per stream: packs of 3 documents, short last chunks kept, no pack across epochs, for two epochs."""
    shards = [make_texts(10, seed=1), make_texts(7, seed=2)]
    raw, _ = raw_and_target_lengths(64, 0.15, 3.0)
    expected: list[list[list[int]]] = []
    for texts in shards:
        chunks = []
        for start in range(0, len(texts), 3):
            pack: list[int] = []
            for text in texts[start : start + 3]:
                pack += tokenizer.encode_batch([text])[0].tolist()
            chunks += [pack[i : i + raw] for i in range(0, len(pack), raw)]
        expected.append(chunks)
    assert any(len(chunk) < raw for chunks in expected for chunk in chunks)
    loader = make_loader(train_files=write_shards(tmp_path, shards), num_streams=2, batch_size=2)
    seen: list[list[list[int]]] = [[], []]
    for _ in range(2 * max(map(len, expected))):
        for stream, (inputs, labels) in enumerate(rows_of(loader.next_batch())):
            seen[stream].append(raw_tokens(inputs, labels, tokenizer))
    for stream in range(2):
        endless = expected[stream] * 4
        assert seen[stream] == endless[: len(seen[stream])]


def test_masks_depend_on_the_position_of_the_pack(
    tmp_path: Path, make_loader: MakeLoader, make_texts: Callable[..., list[str]], write_shards: WriteShards,
    tokenizer: Tokenizer,
) -> None:  # fmt: skip
    """(training, seed, stream, epoch, number in the epoch), recomputed for two streams and three epochs."""
    pattern = write_shards(tmp_path, [make_texts(5, seed=1), make_texts(5, seed=2)])
    settings: dict[str, Any] = {"documents_per_pack": 1, "inputs_length": 512, "seed": 6}
    loader = make_loader(train_files=pattern, num_streams=2, batch_size=2, **settings)
    for epoch in range(3):
        for number in range(5):
            for stream, row in enumerate(rows_of(loader.next_batch())):
                tokens = np.array(raw_tokens(*row, tokenizer))
                rng = np.random.default_rng([2, 6, stream, epoch, number])
                mask = random_spans_masks(1, len(tokens), 0.15, 3.0, rng)
                (inputs,), (targets,) = corrupt(tokens[None], mask, 399, 1)
                assert row[0][: len(inputs)] == inputs.tolist() and row[1][: len(targets)] == targets.tolist()


def test_epochs_repeat_the_documents_in_a_new_shard_order_with_new_masks(
    tmp_path: Path, make_loader: MakeLoader, write_shards: WriteShards, make_texts: Callable[..., list[str]],
    tokenizer: Tokenizer,
) -> None:  # fmt: skip
    shards = [make_texts(1, seed=seed) for seed in range(12)]
    loader = make_loader(
        train_files=write_shards(tmp_path, shards), num_streams=1, documents_per_pack=1, batch_size=1, inputs_length=512
    )
    epochs = [[rows_of(loader.next_batch())[0] for _ in range(12)] for _ in range(3)]
    assert loader.epoch == 2
    raw = [[tuple(raw_tokens(*row, tokenizer)) for row in epoch] for epoch in epochs]
    assert len({tuple(epoch) for epoch in raw}) == 3
    assert {frozenset(epoch) for epoch in raw} == {frozenset(raw[0])} and len(set(raw[0])) == 12
    long = max(raw[0], key=len)
    corrupted = {tuple(epoch[tokens.index(long)][0]) for epoch, tokens in zip(epochs, raw, strict=True)}
    assert len(corrupted) == 3


def test_chunks_of_one_epoch_have_different_masks(
    tmp_path: Path, make_loader: MakeLoader, write_shards: WriteShards
) -> None:
    pattern = write_shards(tmp_path, [["same words again and again and again"] * 20] * 2)
    rows = rows_of(make_loader(train_files=pattern, num_streams=2, documents_per_pack=4, batch_size=10).next_batch())
    assert len({tuple(inputs) for inputs, _ in rows}) > 7


def test_a_stream_without_text_is_an_error(tmp_path: Path, make_loader: MakeLoader, write_shards: WriteShards) -> None:
    pattern = write_shards(tmp_path, [["some text here"], [b"", b"{", b'{"text": "\xe2\x80\x8b"}']])
    loader = make_loader(train_files=pattern, num_streams=2, batch_size=2)
    with pytest.raises(
        ValueError,
        match=r"part-00001\.json\.gz\) holds no text \(bad rows: 1 blank_line, 1 malformed_json\): each line must",
    ) as caught:
        loader.next_batch()
    assert "\n" not in str(caught.value)


def test_text_without_tokens_is_an_error_too(
    tmp_path: Path, make_loader: MakeLoader, write_shards: WriteShards, tokenizer: Tokenizer
) -> None:
    assert len(tokenizer.encode_batch(["\u200b"])[0]) == 0
    loader = make_loader(train_files=write_shards(tmp_path, [["\u200b"] * 7]), num_streams=1)
    with pytest.raises(ValueError, match="holds no text"):
        loader.next_batch()


def test_lengths_where_float32_masks_more_than_planned_are_cut_before_eos(
    make_loader: MakeLoader, make_texts: Callable[..., list[str]], write_shards: WriteShards, tmp_path: Path
) -> None:
    assert raw_and_target_lengths(172, 0.15, 3.0) == (190, 38)
    pattern = write_shards(tmp_path, [make_texts(50)])
    loader = make_loader(train_files=pattern, num_streams=1, documents_per_pack=50, inputs_length=172)
    batch = loader.next_batch()
    assert batch["labels"].shape == (4, 38)
    assert (batch["labels"][:, -1] == 1).all() and (batch["input_ids"][:, -1] == 1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"world_size": 3}, r"^data\.num_streams = 4 is not a multiple of the 3 ranks: set data\.num_streams=3$"),
        ({"rank": 2, "world_size": 2}, r"^rank = 2"),
        ({"batch_size": 0}, r"^batch_size = 0"),
        ({"inputs_length": 2048}, r"^data\.inputs_length = 2048 needs 114 sentinels"),
        (
            {"num_streams": 16},
            r"^data\.num_streams = 16, but data\.train_files = .* has 8 shards: set data\.num_streams=8,",
        ),
        ({"num_streams": 10, "world_size": 5}, r"has 8 shards: set data\.num_streams=5,"),
        (
            {"num_streams": 2, "world_size": 9},
            r"has 8 shards, too few for 9 ranks: write the text to at least 9 shards",
        ),
        ({"train_files": "none/*.gz"}, r"^data\.train_files = 'none/\*\.gz' matches no file"),
    ],
)
def test_wrong_settings(make_loader: MakeLoader, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loader(**settings)
