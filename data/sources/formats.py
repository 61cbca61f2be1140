"""File formats: decodes a file's rows by its ending, JSON lines or plain text, with or without gzip, or Parquet."""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import BinaryIO
from urllib.parse import urlsplit

from isal import isal_zlib

from data.sources.retry import DataError
from data.sources.rows import (
    BYTE_ORDER_MARK,
    BadRow,
    DamagedFileError,
    MissingColumnError,
    Row,
    check_text,
    parse_json_line,
    parse_text_line,
)

BLOCK_BYTES = 1 << 18
PARQUET_BATCH_ROWS = 256
GZIP_WBITS = 31
GZIP_MAGIC, ZSTANDARD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
TEXT_ENDINGS, PARQUET_ENDINGS = (".txt",), (".parquet",)
LINE_ENDINGS = (".json", ".jsonl", *TEXT_ENDINGS)


def file_format(name: str) -> tuple[str, bool] | None:
    """Return (ending without .gz, whether the file is gzip) of a path or URL, or None for an unknown ending."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(urlsplit(name).path if "://" in name else name).suffixes]
    gzipped = suffixes[-1:] == [".gz"]
    ending = "".join(suffixes[:-1][-1:] if gzipped else suffixes[-1:])
    known = LINE_ENDINGS if gzipped else (*LINE_ENDINGS, *PARQUET_ENDINGS)
    return (ending, gzipped) if ending in known else None


def check_content(start: bytes, name: str, ending: str, gzipped: bool) -> None:
    """Refuse a file of lines that is something else as a whole: none of its rows would be a document.

    Args:
        start: first bytes of the file, before decompression.
        name: path or URL, for the message.
        ending: format by the name, without .gz.
        gzipped: whether the name ends with .gz.

    Raises:
        DataError: names the file, what it is and what to do.
    """
    if gzipped:
        if start and not GZIP_MAGIC.startswith(start[: len(GZIP_MAGIC)]):
            raise DataError(f"{name} is not gzip: take .gz off its name, or compress it")
        return
    if start.startswith(GZIP_MAGIC):
        raise DataError(f"{name} is gzip: add .gz to its name")
    if start.startswith(ZSTANDARD_MAGIC):
        raise DataError(f"{name} is Zstandard: decompress it, or compress it with gzip (.gz)")
    _check_lines(start, name, ending)


def _check_lines(start: bytes, name: str, ending: str) -> None:
    """Refuse text that is not UTF-8, and JSON that is not one object per line; ``start`` is decompressed."""
    # ASCII in UTF-16 or UTF-32 has zeros in most of its bytes, and UTF-8 has none.
    if start.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")) or start[:100].count(0) * 3 > len(start[:100]):
        raise DataError(f"{name} is UTF-16 or UTF-32: convert it to UTF-8, as with `iconv -f UTF-16 -t UTF-8`")
    if ending not in TEXT_ENDINGS and start.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"["):
        raise DataError(
            f"{name} is a JSON array: one JSON object per line is read, without commas between; convert it, as with "
            "`jq -c '.[]'`"
        )


def _checked(blocks: Iterator[bytes], name: str, ending: str) -> Iterator[bytes]:
    first = next(blocks, b"")
    _check_lines(first, name, ending)
    yield first
    yield from blocks


def read_rows(file: BinaryIO, name: str, text_column: str, start: int) -> Iterator[Row]:
    """Yield the rows of a file from row ``start``; a row is a line, or a row of the Parquet table.

    Args:
        file: binary file; seekable if Parquet.
        name: path or URL; its ending determines the format.
        text_column: JSON key or Parquet column of the text.
        start: number of rows to skip.

    Raises:
        DamagedFileError: the file is truncated or corrupt; raised after all intact rows.
        MissingColumnError: a Parquet file has no such column.
        DataError: the whole file is of another format than its name says.
    """
    found = file_format(name)
    assert found, name
    ending, gzipped = found
    if ending in PARQUET_ENDINGS:
        yield from _parquet_rows(file, name, text_column, start)
        return
    blocks = _blocks(file)
    if first := next(blocks, b""):
        check_content(first, name, ending, gzipped)
    blocks = chain([first] if first else [], blocks)
    lines = islice(_lines(_checked(_gunzip(blocks), name, ending) if gzipped else blocks), start, None)
    if ending in TEXT_ENDINGS:
        yield from map(parse_text_line, lines)
    else:
        for line in lines:
            yield parse_json_line(line, text_column)


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        yield block


def _gunzip(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield decompressed blocks of all gzip members. ISA-L takes a third of the time of zlib."""
    member = isal_zlib.decompressobj(GZIP_WBITS)
    empty = True  # for an empty file, which is not a gzip stream
    try:
        for block in blocks:
            while block:
                if member.eof:
                    member = isal_zlib.decompressobj(GZIP_WBITS)
                out = member.decompress(block)
                block = member.unused_data.lstrip(b"\0") if member.eof else b""  # members may be zero-padded
                empty = False
                if out:
                    yield out
    except isal_zlib.error as error:  # type: ignore[misc]  # the stub declares an instance
        raise DamagedFileError(str(error)) from error
    if empty or not member.eof:
        raise DamagedFileError("the gzip stream is truncated")


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield lines without line ends. Only newlines split: JSON text may contain any other separator."""
    rest: list[bytes] = []  # start of the current line; joined once, also for a line of several blocks
    for block in blocks:
        first, *others = block.split(b"\n")
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
        raise MissingColumnError(schema.names)
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
        for batch in table.iter_batches(PARQUET_BATCH_ROWS, row_groups=groups, columns=[column], use_threads=False):
            if start >= len(batch):
                start -= len(batch)
                continue
            values = batch.column(0).slice(start)
            start = 0
            if not is_text:
                yield from (check_text(value) for value in values.to_pylist())
                continue
            # Decode here: Arrow's own decoding fails for the whole batch at the first invalid byte.
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
