"""From the bytes of a shard to its rows, by file ending: JSON lines, plain text, Parquet; gzip or not."""

from collections.abc import Iterator
from itertools import islice
from pathlib import PurePosixPath
from typing import BinaryIO
from urllib.parse import urlsplit

from isal import isal_zlib

from data.sources.retry import DataError
from data.sources.rows import BadRow, DamagedFileError, Row, check_text, parse_json_line, parse_text_line

CHUNK_BYTES = 1 << 18
PARQUET_ROWS = 256  # decoded at a time
GZIP = 31  # wbits of a gzip member
TEXT_ENDINGS, PARQUET_ENDINGS = (".txt",), (".parquet",)
LINE_ENDINGS = (".json", ".jsonl", *TEXT_ENDINGS)


def file_format(name: str) -> tuple[str, bool] | None:
    """(ending without .gz, whether it is gzip) of a path or URL; None when the ending is none that can be read."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(urlsplit(name).path if "://" in name else name).suffixes]
    gzipped = suffixes[-1:] == [".gz"]
    ending = "".join(suffixes[:-1][-1:] if gzipped else suffixes[-1:])
    known = LINE_ENDINGS if gzipped else (*LINE_ENDINGS, *PARQUET_ENDINGS)
    return (ending, gzipped) if ending in known else None


def read_rows(file: BinaryIO, name: str, text_column: str, start: int) -> Iterator[Row]:
    """Rows of a file from row `start` on; a row is a line, or a row of the Parquet table.

    Args:
        file: open for reading bytes; seekable if it is Parquet.
        name: path or URL; its ending gives the format.
        text_column: JSON key or Parquet column of the text.
        start: rows to leave out.

    Raises:
        DamagedFileError: the bytes are cut off or changed; all whole rows before were given.
        DataError: a Parquet file has no such column.
    """
    found = file_format(name)
    assert found, name
    ending, gzipped = found
    if ending in PARQUET_ENDINGS:
        yield from _parquet_rows(file, name, text_column, start)
        return
    lines = islice(_lines(_gunzip(file) if gzipped else _chunks(file)), start, None)
    if ending in TEXT_ENDINGS:
        yield from map(parse_text_line, lines)
    else:
        for line in lines:
            yield parse_json_line(line, text_column)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    """Decompressed chunks of all gzip members, with ISA-L: at a third of the cost of zlib."""
    member = isal_zlib.decompressobj(GZIP)
    fresh = True  # nothing of this member was read yet
    try:
        for chunk in _chunks(file):
            while chunk:
                if member.eof:
                    member = isal_zlib.decompressobj(GZIP)
                out = member.decompress(chunk)
                chunk = member.unused_data.lstrip(b"\0") if member.eof else b""  # zeros may pad a member
                fresh = False
                if out:
                    yield out
    except isal_zlib.error as error:  # type: ignore[misc]  # the stub declares an instance
        raise DamagedFileError(str(error)) from error
    if fresh or not member.eof:
        raise DamagedFileError("the gzip stream is cut off")


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines without their ends. Split at newlines alone: JSON text may hold any other separator."""
    rest: list[bytes] = []  # of a line longer than a chunk: joined once, not once per chunk
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        if others:
            yield b"".join(rest)
            rest = [others.pop()]
            yield from others
    if last := b"".join(rest):
        yield last


def _parquet_rows(file: BinaryIO, name: str, column: str, start: int) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        schema = table.schema_arrow
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DamagedFileError(str(error)) from error
    if column not in schema.names:
        raise DataError(f"{name} has no column {column!r}: set text_column to one of {', '.join(schema.names)}")
    kind = schema.field(column).type
    is_text = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
    groups: list[int] = []
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        if start >= rows and not groups:
            start -= rows
        else:
            groups.append(group)
    try:
        for batch in table.iter_batches(PARQUET_ROWS, row_groups=groups, columns=[column], use_threads=False):
            if start >= len(batch):
                start -= len(batch)
                continue
            values = batch.column(0).slice(start)
            start = 0
            if not is_text:
                yield from (check_text(value) for value in values.to_pylist())
                continue
            # As bytes: Arrow's own decoding loses the whole batch at the first wrong byte.
            for value in values.cast(pyarrow.large_binary()).to_pylist():
                yield _utf8(value)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DamagedFileError(str(error)) from error


def _utf8(value: bytes | None) -> Row:
    if value is None:
        return BadRow.MISSING_TEXT
    try:
        return check_text(value.decode("utf-8"))
    except UnicodeDecodeError:
        return BadRow.INVALID_UTF8
