"""Rows of local shards, bad rows by kind, and the order of streams."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from data.sources.files import FileShards
from data.sources.retry import Retries
from data.sources.rows import BadRow, Row
from data.streaming.corpus import Corpus, Position

BAD_LINES = {
    BadRow.BLANK_LINE: [b"", b"   "],
    BadRow.MALFORMED_JSON: [b'{"text": "open', b"no json", b"[" * 100_000],
    BadRow.NOT_AN_OBJECT: [b'["text"]', b"3"],
    BadRow.MISSING_TEXT: [b'{"url": "x"}', b'{"text": null}'],
    BadRow.NON_STRING_TEXT: [b'{"text": 5}', b'{"text": ["a"]}'],
    BadRow.INVALID_UTF8: [b'{"text": "\xff\xfe"}', b'{"text": "half \\ud800 pair"}'],
    BadRow.EMPTY_TEXT: [b'{"text": ""}', b'{"text": " \\n "}'],
}


def open_shards(pattern: str) -> FileShards:
    return FileShards.matching("data.train_files", pattern, "text", Retries(0, 0.0), 1024)


def open_corpus(pattern: str, num_streams: int, seed: int = 0, shuffled: bool = True) -> Corpus:
    return Corpus(open_shards(pattern), num_streams, seed, shuffled=shuffled)


def test_bad_rows_are_reported_by_kind_and_advance_the_row(tmp_path: Path, write_shards: Callable[..., str]) -> None:
    rows: list[str | bytes] = ["first"]
    expected: list[Row] = ["first"]
    for kind, lines in BAD_LINES.items():
        for line in lines:
            rows += [line, f"after {kind.value}"]
            expected += [kind, f"after {kind.value}"]
    read = list(open_corpus(write_shards(tmp_path, [rows]), 1).rows(0, Position(0, 0, 0)))
    assert [row for row, _ in read] == expected
    assert [position for _, position in read] == [Position(0, 0, i + 1) for i in range(len(expected))]


def test_unusual_text_is_kept_as_it_is(tmp_path: Path, write_shards: Callable[..., str]) -> None:
    texts = ["line\nbreak", "nul \x00 byte", "漢字 ñ 😀", " spaces ", "\u2028 separator \x85"]
    shards = open_shards(write_shards(tmp_path, [texts]))
    assert list(shards.rows(0, 0)) == texts


def test_a_cut_file_ends_with_one_bad_row(tmp_path: Path, write_shards: Callable[..., str]) -> None:
    texts = [f"document {i} " + str(hash(str(i))) for i in range(2000)]
    pattern = write_shards(tmp_path, [texts, ["whole"]])
    first = tmp_path / "part-00000.json.gz"
    first.write_bytes(first.read_bytes()[:-5000])
    rows = list(open_shards(pattern).rows(0, 0))
    assert rows[-1] is BadRow.DAMAGED_FILE
    kept = [row for row in rows if isinstance(row, str)]
    assert 0 < len(kept) < 2000 and kept == texts[: len(kept)]
    counts = Counter(row for row, _ in open_corpus(pattern, 1, shuffled=False).rows(0, Position(0, 0, 0)))
    assert counts["whole"] == 1 and counts[BadRow.DAMAGED_FILE] == 1


def test_streams_share_the_shards_among_them(train_files: str) -> None:
    corpus = open_corpus(train_files, 3)
    for epoch in range(3):
        assert [sorted(corpus.shard_order(s, epoch)) for s in range(3)] == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_shard_order_changes_with_epoch_stream_and_seed_and_repeats(
    tmp_path: Path, write_shards: Callable[..., str]
) -> None:
    pattern = write_shards(tmp_path, [["x"]] * 40)
    orders = [
        tuple(shard // 2 for shard in open_corpus(pattern, 2, seed).shard_order(stream, epoch))
        for seed in range(2)
        for stream in range(2)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 12
    assert open_corpus(pattern, 2, 1).shard_order(1, 2) == open_corpus(pattern, 2, 1).shard_order(1, 2)
    assert open_corpus(pattern, 1, shuffled=False).shard_order(0, 5) == list(range(40))


def test_reading_resumes_from_any_position(train_files: str) -> None:
    corpus = open_corpus(train_files, 2)
    whole = list(corpus.rows(1, Position(4, 0, 0)))
    assert len(whole) == 11 + 13 + 15 + 17
    for number, (_, position) in enumerate(whole):
        assert list(corpus.rows(1, position)) == whole[number + 1 :]


def test_no_file_and_too_few_shards_are_one_line(train_files: str) -> None:
    with pytest.raises(
        ValueError, match=r"^data\.train_files = 'x/\*\.json\.gz' matches no file in /.*: run `bash .*$"
    ):
        open_shards("x/*.json.gz")
    with pytest.raises(ValueError, match=r"^data\.num_streams = 9 is more than the 8 shards "):
        open_corpus(train_files, 9)
