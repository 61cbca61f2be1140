"""File sources: the same rows for every format and location, from any row, through failures."""

import gzip
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.sources.files import FileShards
from data.sources.formats import file_format, read_rows
from data.sources.patterns import expand_braces, find_files
from data.sources.remote import HttpFile
from data.sources.retry import DataError, Retries
from data.sources.rows import BadRow, DamagedFileError, Row, parse_json_line
from tests.support.faulty_server import serve

TEXTS = [f"document {i} über \u2028 {'x' * (i % 50)}" for i in range(700)]


def shards(pattern: str, retries: Retries | None = None, column: str = "text") -> FileShards:
    return FileShards.matching("data.train_files", pattern, column, retries or Retries(0, 0.0), 1024)


def as_json(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def as_parquet(values: list[Any], kind: pyarrow.DataType | None = None, column: str = "text") -> bytes:
    table = pyarrow.table({"other": list(range(len(values))), column: pyarrow.array(values, kind or pyarrow.string())})
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out, row_group_size=300)
    return out.getvalue()


FILES = {
    "a.json": as_json(TEXTS),
    "a.jsonl": as_json(TEXTS).rstrip(b"\n"),
    "a.json.gz": gzip.compress(as_json(TEXTS)),
    "a.jsonl.gz": gzip.compress(as_json(TEXTS[:300])) + gzip.compress(as_json(TEXTS[300:])) + bytes(512),
    "a.txt": "\n".join(TEXTS).encode(),
    "a.TXT.gz": gzip.compress("\n".join(TEXTS).encode()),
    "a.parquet": as_parquet(TEXTS),
    "b.parquet": as_parquet(TEXTS, pyarrow.large_string()),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows_from_any_row_on(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    source = shards(str(tmp_path / name))
    for start in (0, 1, 255, 256, 299, 300, 301, 699, 700, 900):
        assert list(source.rows(0, start)) == TEXTS[start:], start


@pytest.mark.parametrize("name", FILES)
def test_the_same_over_http_with_faults(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    # One row group of Parquet takes several requests, all of which must succeed in one attempt.
    with serve(tmp_path, fault_rate=0.2 if name.endswith("parquet") else 0.5, seed=3) as server:
        retries = Retries(50, 0.0)
        source = shards(f"{server.url}/{name}", retries)
        assert [list(source.rows(0, start)) for start in (0, 256, 650)] == [TEXTS[start:] for start in (0, 256, 650)]
        assert retries.counts.total() == server.faults.total()


def test_blocks_of_a_remote_file_are_joined_exactly(tmp_path: Path) -> None:
    content = bytes(range(256)) * 100
    (tmp_path / "file").write_bytes(content)
    with serve(tmp_path) as server:
        with io.BufferedReader(HttpFile(f"{server.url}/file"), 1000) as file:
            assert file.read() == content
            assert server.requests["GET"] > 1
            file.seek(-300, io.SEEK_END)
            assert file.read(10) == content[-300:-290]
            file.seek(5, io.SEEK_CUR)
            assert (file.tell(), file.read(1)) == (len(content) - 285, content[-285:-284])
        (tmp_path / "empty").write_bytes(b"")
        assert io.BufferedReader(HttpFile(f"{server.url}/empty")).read() == b""


def test_a_remote_file_that_changes_under_the_reader_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a" * 100)
    with serve(tmp_path) as server:
        file = HttpFile(f"{server.url}/file")
        file.readinto(bytearray(10))
        (tmp_path / "file").write_bytes(b"b" * 100)
        with pytest.raises(OSError, match="changed on the server"):
            file.readinto(bytearray(10))


def test_waits_grow_have_jitter_and_obey_the_server() -> None:
    class LaterError(Exception):
        response = type("Response", (), {"status_code": 429, "headers": {"retry-after": "7"}})

    waits: list[float] = []

    def open_at(row: int) -> Any:
        raise LaterError if len(waits) % 2 else EOFError

    with pytest.raises(DataError, match=r"^shard 5 cannot be read beyond row 3 after 12 attempts"):
        list(Retries(11, 2.0, sleep=waits.append).rows(open_at, 3, "shard 5"))
    assert len(waits) == 11 and waits[1] == 7.0
    assert all(2.0**i <= wait <= 3 * 2.0**i for i, wait in enumerate(waits[:5]) if i != 1)
    assert max(waits) <= 90.0


@pytest.mark.parametrize(("path", "words"), [("missing.json.gz", "404"), ("a.json.gz", "shard 0 ")])
def test_errors_that_last_are_clear(tmp_path: Path, path: str, words: str) -> None:
    """A wrong address fails at once; a file that stays truncated, after the limit. Both name the shard and row."""
    (tmp_path / "a.json.gz").write_bytes(FILES["a.json.gz"][:-20])
    waits: list[float] = []
    with serve(tmp_path) as server:
        source = shards(f"{server.url}/{path}", Retries(2, 1.0, sleep=waits.append))
        with pytest.raises(DataError, match=rf"shard 0 \(http://127.*{path}\) cannot be read beyond row \d+") as caught:
            list(source.rows(0, 0))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert len(waits) == (0 if "missing" in path else 2)


def test_a_server_without_ranges_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.faulty_server import _Handler

    (tmp_path / "a.json").write_bytes(FILES["a.json"])
    monkeypatch.setattr(_Handler, "_send_file", lambda self, path, with_body: self._send(200, path.read_bytes()))
    with serve(tmp_path) as server, pytest.raises(DataError, match="ignores range requests"):
        list(shards(f"{server.url}/a.json").rows(0, 0))


def test_damage_to_a_local_file_is_one_bad_row_and_to_a_remote_one_a_reason_to_retry(tmp_path: Path) -> None:
    for name, damage in (("a.json.gz", -40), ("a.parquet", -5)):
        (tmp_path / name).write_bytes(FILES[name][:damage])
        *rows, last = shards(str(tmp_path / name)).rows(0, 0)
        assert last is BadRow.DAMAGED_FILE and rows == TEXTS[: len(rows)]
        retries = Retries(3, 0.0)
        with serve(tmp_path) as server, pytest.raises(DataError, match="after 4 attempts"):
            list(shards(f"{server.url}/{name}", retries).rows(0, 0))
        assert retries.counts == {"DamagedFileError": 3}


def test_bad_parquet_values_are_counted_and_a_missing_column_is_an_error(tmp_path: Path) -> None:
    binary = pyarrow.array([b"good", None, b"\xff", b" ", b"too"], pyarrow.binary())
    text = pyarrow.StringArray.from_buffers(5, binary.buffers()[1], binary.buffers()[2], binary.buffers()[0])
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(as_parquet([1, None], pyarrow.int64(), "number"))
    expected = ["good", BadRow.MISSING_TEXT, BadRow.INVALID_UTF8, BadRow.EMPTY_TEXT, "too"]
    assert list(shards(str(tmp_path / "a.parquet")).rows(0, 0)) == expected
    numbers = shards(str(tmp_path / "b.parquet"), column="number")
    assert list(numbers.rows(0, 0)) == [BadRow.NON_STRING_TEXT, BadRow.MISSING_TEXT]
    with pytest.raises(DataError, match=r"has no column 'text': set data\.text_column to one of other, number"):
        list(shards(str(tmp_path / "b.parquet")).rows(0, 0))


def test_plain_text_counts_blank_lines_and_wrong_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n\n  \r\ntwo\r\n\xff\n\xc2\xa0\n")
    rows = list(shards(str(tmp_path / "a.txt")).rows(0, 0))
    assert rows == ["one", BadRow.BLANK_LINE, BadRow.BLANK_LINE, "two\r", BadRow.INVALID_UTF8, BadRow.EMPTY_TEXT]


WHOLE_FILES = {
    "array.json": (json.dumps([{"text": "one"}]).encode(), "is a JSON array: one JSON object per line"),
    "pretty.jsonl": (b"\xef\xbb\xbf\n " + json.dumps([{"text": "one"}], indent=2).encode(), "is a JSON array"),
    "array.json.gz": (gzip.compress(b'[{"text": "one"}]'), "is a JSON array"),
    "utf16.jsonl": ('{"text": "one"}'.encode("utf-16"), "is UTF-16 or UTF-32: convert it to UTF-8"),
    "utf16-be.txt": ("a document".encode("utf-16-be"), "is UTF-16 or UTF-32"),
    "utf32.jsonl.gz": (gzip.compress('{"text": "one"}'.encode("utf-32")), "is UTF-16 or UTF-32"),
    "plain.json.gz": (b'{"text": "one"}', "is not gzip: take .gz off its name"),
    "packed.json": (gzip.compress(b'{"text": "one"}'), "is gzip: add .gz to its name"),
    "packed.txt": (b"\x28\xb5\x2f\xfd0000", "is Zstandard"),
}


@pytest.mark.parametrize("name", WHOLE_FILES)
@pytest.mark.parametrize("remote", [False, True])
def test_a_file_that_is_something_else_is_refused_at_once(tmp_path: Path, name: str, remote: bool) -> None:
    content, words = WHOLE_FILES[name]
    (tmp_path / name).write_bytes(content)
    waits: list[float] = []
    with serve(tmp_path) as server:
        path = f"{server.url}/{name}" if remote else str(tmp_path / name)
        source = shards(path, Retries(3, 1.0, sleep=waits.append))
        with pytest.raises(DataError) as caught:
            list(source.rows(0, 0))
    assert name in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)
    assert not waits


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.jsonl").write_bytes(mark + as_json(["first", "second"]) + mark + as_json(["third"]))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(mark + as_json(["first"])))
    assert list(shards(str(tmp_path / "a.jsonl")).rows(0, 0)) == ["first", "second", "third"]
    assert list(shards(str(tmp_path / "b.json.gz")).rows(0, 0)) == ["first"]


@pytest.mark.parametrize(
    "error", [IsADirectoryError(21, "x"), PermissionError(13, "x"), NotADirectoryError(), OSError(40, "loop")]
)
def test_an_error_that_cannot_heal_is_not_retried(error: OSError) -> None:
    def open_at(row: int) -> Any:
        raise error

    waits: list[float] = []
    with pytest.raises(DataError, match="check its address and your permission"):
        list(Retries(8, 1.0, sleep=waits.append).rows(open_at, 0, "shard 0"))
    assert not waits


def test_a_file_that_vanishes_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(FILES["a.json"])
    source = shards(str(tmp_path / "a.json"))
    (tmp_path / "a.json").unlink()
    with pytest.raises(DataError, match=r"shard 0 \(.*a\.json\) cannot be read beyond row 2: check its address"):
        list(source.rows(0, 2))


def test_patterns_and_endings(tmp_path: Path) -> None:
    assert expand_braces("a-{008..010}-of-{1..2}.gz") == [
        f"a-{n}-of-{k}.gz" for n in ("008", "009", "010") for k in (1, 2)
    ]
    assert find_files("k", "https://host/c4-train.{00000..01023}-of-01024.json.gz")[1023].endswith(
        "01023-of-01024.json.gz"
    )
    assert file_format("https://host/a.json.gz?download=true") == (".json", True)
    assert file_format("/data/v1.5/part.000.jsonl") == (".jsonl", False)
    assert [file_format(name) for name in ("a.zst", "a.parquet.gz", "gz", "a.gz", "a")] == [None] * 5
    (tmp_path / "a.csv").write_text("text\n")
    with pytest.raises(ValueError, match=r"a\.csv has an unknown file ending: use \.json\.gz"):
        shards(str(tmp_path / "*"))


def test_any_file_system_of_fsspec() -> None:
    memory = fsspec.filesystem("memory")
    for number in range(2):
        memory.pipe(f"/c4/part-{number}.json.gz", gzip.compress(as_json(TEXTS[number : number + 3])))
    source = shards("memory://c4/part-*.json.gz")
    assert [list(source.rows(shard, 1)) for shard in range(2)] == [TEXTS[1:3], TEXTS[2:4]]
    with pytest.raises(DataError, match=r"^data\.train_files = 'nowhere://x/\*\.json' cannot be listed: .*nowhere"):
        shards("nowhere://x/*.json")


@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=30).map(
        lambda lines: [b'{"text": "a"}', *lines]  # a file that begins as JSON lines
    ),
    chunk=st.integers(1, 50),
)
def test_lines_equal_those_of_the_standard_library(lines: list[bytes], chunk: int) -> None:
    """Cut into chunks of any size, plain and compressed, ``read_rows`` sees the lines that the gzip module sees."""
    content = b"\n".join(lines)

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(chunk)

    with gzip.open(io.BytesIO(gzip.compress(content))) as file:
        expected = [parse_json_line(line.rstrip(b"\n"), "text") for line in file]
    assert list(read_rows(Slow(content), "a.json", "text", 0)) == expected
    assert list(read_rows(Slow(gzip.compress(content)), "a.json.gz", "text", 0)) == expected


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(value=VALUES, ascii_only=st.booleans())
def test_json_is_read_as_by_the_standard_library(value: Any, ascii_only: bool) -> None:
    line = json.dumps({"text": value}, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    row: Row = parse_json_line(line, "text")
    if isinstance(value, str) and value.strip():
        assert row == value
    else:
        assert isinstance(row, BadRow)
    assert parse_json_line(b" " + line + b"\r", "text") == row
    assert parse_json_line(line + b"x", "text") is BadRow.MALFORMED_JSON


def test_every_cut_of_a_gzip_file_is_noticed() -> None:
    blob = gzip.compress(as_json(TEXTS[:20]))
    for length in range(len(blob)):
        rows: list[Row] = []
        with pytest.raises(DamagedFileError):
            rows.extend(read_rows(io.BytesIO(blob[:length]), "a.json.gz", "text", 0))
        assert rows == TEXTS[: len(rows)]
    flipped = bytearray(blob)
    flipped[-6] ^= 1  # the checksum
    with pytest.raises((DamagedFileError, zlib.error)):
        list(read_rows(io.BytesIO(bytes(flipped)), "a.json.gz", "text", 0))


def test_the_rows_do_not_depend_on_the_gzip_level(tmp_path: Path, make_texts: Callable[..., list[str]]) -> None:
    texts = make_texts(5000, words=100)
    for level in (1, 9):
        (tmp_path / f"{level}.json.gz").write_bytes(gzip.compress(as_json(texts), level))
        assert list(shards(str(tmp_path / f"{level}.json.gz")).rows(0, 0)) == texts
