"""Single streams: shuffled documents, bad rows, very long and very short documents."""

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.sources.retry import DataError
from data.streaming.loader import PretrainingLoader
from data.streaming.stream import _split
from data.tokenizer import Tokenizer
from tests.support.examples import raw_tokens

MakeLoader = Callable[..., PretrainingLoader]
MakeTexts = Callable[..., list[str]]
WriteShards = Callable[..., str]


def texts_given(loader: PretrainingLoader, tokenizer: Tokenizer, batches: int) -> list[str]:
    texts = []
    for _ in range(batches):
        batch = loader.next_batch()
        for inputs, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            texts.append(tokenizer.decode(raw_tokens(inputs, labels, tokenizer)))
    return texts


@pytest.mark.parametrize("num_documents", [15, 24, 29])
def test_a_shuffle_buffer_gives_each_document_once_an_epoch_in_a_new_order(
    tmp_path: Path, make_loader: MakeLoader, make_texts: MakeTexts, write_shards: WriteShards, tokenizer: Tokenizer,
    num_documents: int,
) -> None:  # fmt: skip
    """One document per example, so that the examples show the order."""
    texts = make_texts(num_documents, seed=5)
    pattern = write_shards(tmp_path, [texts[:10], texts[10:]])
    common: dict[str, Any] = {"num_streams": 1, "documents_per_pack": 1, "inputs_length": 512, "batch_size": 1}
    epochs = []
    loader = make_loader(train_files=pattern, shuffle_buffer=8, **common)
    for _ in range(3):
        epochs.append(texts_given(loader, tokenizer, num_documents))
        assert sorted(epochs[-1]) == sorted(texts)
    unshuffled = texts_given(make_loader(train_files=pattern, **common), tokenizer, num_documents)
    assert len({tuple(order) for order in [unshuffled, *epochs]}) == 4
    for start in range(0, num_documents, 8):  # a buffer holds the next 8 documents, whatever their order
        assert sorted(epochs[0][start : start + 8]) == sorted(unshuffled[start : start + 8])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    per_pack=st.integers(1, 5), packs=st.integers(0, 4), num_streams=st.sampled_from([1, 2, 8]),
    batch=st.integers(1, 5), steps=st.integers(0, 60), seed=st.integers(0, 3),
)  # fmt: skip
def test_resume_is_exact_whatever_the_buffer(
    make_loader: MakeLoader, per_pack: int, packs: int, num_streams: int, batch: int, steps: int, seed: int
) -> None:
    options: dict[str, Any] = {
        "documents_per_pack": per_pack, "shuffle_buffer": per_pack * packs, "num_streams": num_streams,
        "batch_size": batch, "seed": seed,
    }  # fmt: skip
    loader, resumed = make_loader(**options), make_loader(**options)
    for _ in range(steps):
        loader.next_batch()
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    for _ in range(12):
        np.testing.assert_equal(resumed.next_batch(), loader.next_batch())
    assert resumed.state_dict() == loader.state_dict()
    assert resumed.counts == loader.counts


def test_bad_rows_of_a_buffer_are_counted_once(
    tmp_path: Path, make_loader: MakeLoader, make_texts: MakeTexts, write_shards: WriteShards
) -> None:
    rows: list[str | bytes] = []
    for text in make_texts(39):
        rows += [text, b"{"]
    options: dict[str, Any] = {
        "train_files": write_shards(tmp_path, [rows]), "num_streams": 1, "documents_per_pack": 2, "batch_size": 1,
        "shuffle_buffer": 8, "max_bad_fraction": 1.0,
    }  # fmt: skip
    loader = make_loader(**options)
    while loader.epoch == 0:
        loader.next_batch()
        resumed = make_loader(**options)
        resumed.load_state_dict(loader.state_dict())
        loader = resumed
    assert (loader.counts["rows"], loader.documents, loader.bad_rows) == (78, 39, {"malformed_json": 39})


@pytest.mark.parametrize(("good", "bad", "limit"), [(0, 11, 0.01), (500, 11, 0.01), (3000, 31, 0.01), (50, 1, 0.0)])
def test_too_many_bad_rows_stop_the_run_with_one_line(
    tmp_path: Path, make_loader: MakeLoader, make_texts: MakeTexts, write_shards: WriteShards, good: int, bad: int,
    limit: float,
) -> None:  # fmt: skip
    """The fraction is of at least 1,000 rows: a few bad rows at the start of a stream do not stop it."""
    pattern = write_shards(tmp_path, [[*make_texts(good), *[b'{"url": "x"}'] * (bad - 1), b""]])
    options: dict[str, Any] = {"num_streams": 1, "batch_size": 64, "max_bad_fraction": limit, "train_files": pattern}
    if good and limit:
        loader = make_loader(**options)
        while loader.epoch == 0:
            loader.next_batch()
        assert loader.bad_rows == {"blank_line": 1, "missing_text": bad - 1}
        assert loader.metrics()["data_bad_rows"] == bad - 1  # a blank line is none
    pattern = write_shards(tmp_path, [[*make_texts(good), *[b'{"url": "x"}'] * bad]])
    loader = make_loader(**options)
    with pytest.raises(DataError) as caught:  # noqa: PT012
        while loader.epoch == 0:
            loader.next_batch()
    message = str(caught.value)
    assert message.startswith(f"{bad} of the {good + bad} rows that stream 0 has read are bad ({bad} missing_text), ")
    assert f"data.max_bad_fraction = {limit}" in message and f"row {good + bad - 1} of data.train_files" in message
    assert "shard 0 (" in message and "\n" not in message


def test_very_long_and_very_short_documents(
    tmp_path: Path, make_loader: MakeLoader, make_texts: MakeTexts, write_shards: WriteShards, tokenizer: Tokenizer
) -> None:
    """Ten megabytes, a megabyte without spaces, and single characters: nothing is lost at the cuts."""
    sentence = " ".join(make_texts(300, seed=3))
    copies = 10_000_000 // len(sentence)
    long = [" ".join([sentence] * copies), "ab" * 500_000]
    short = ["a", "b", "."] * 200
    pattern = write_shards(tmp_path, [[*short, *long, *short]])
    loader = make_loader(train_files=pattern, num_streams=1, documents_per_pack=128, batch_size=1, inputs_length=512)
    tokens: list[int] = []
    while loader.epoch == 0:
        batch = loader.next_batch()
        for inputs, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            tokens += raw_tokens(inputs, labels, tokenizer)
    assert loader.metrics()["data_split_documents"] == 2
    whole = [*short, *[sentence] * copies, *["ab" * 50_000] * 10, *short]
    assert tokenizer.decode(tokens) == " ".join(whole)
    # SentencePiece sums scores in float32: of nearly equal segmentations either may win, one in many thousands.
    assert len(tokens) == pytest.approx(sum(map(len, tokenizer.encode_batch(whole))), rel=1e-4)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("ab \n"), max_size=60), limit=st.integers(2, 20))
def test_chunks_of_a_long_document_are_short_and_complete(text: str, limit: int) -> None:
    chunks = _split(text, limit)
    assert "".join(chunks) == text
    assert all(len(chunk) <= limit for chunk in chunks)
    for before, after in itertools.pairwise(chunks):
        assert after[0].isspace() or not any(c.isspace() for c in before[1:]), (before, after)


def test_split_documents_have_the_tokens_of_unsplit_ones(
    tmp_path: Path, make_loader: MakeLoader, make_texts: MakeTexts, write_shards: WriteShards
) -> None:
    pattern = write_shards(tmp_path, [[" ".join(make_texts(200, seed=seed)) for seed in range(3)]])
    whole, split = (make_loader(train_files=pattern, num_streams=1, max_document_length=n) for n in (10**6, 1000))
    for _ in range(20):
        np.testing.assert_equal(whole.next_batch(), split.next_batch())
    assert Counter(split.metrics())["data_split_documents"] == 3
