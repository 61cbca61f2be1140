"""Rows of a shard: each is a document, or the reason why it is bad."""

import json
from enum import Enum

import orjson


class BadRow(Enum):
    """Why a row holds no document. Bad rows are counted and skipped: one bad line in a billion must not end a run."""

    BLANK_LINE = "blank_line"
    INVALID_UTF8 = "invalid_utf8"
    MALFORMED_JSON = "malformed_json"
    MISSING_TEXT = "missing_text"
    NON_STRING_TEXT = "non_string_text"
    EMPTY_TEXT = "empty_text"
    DAMAGED_FILE = "damaged_file"


Row = str | BadRow


class DamagedFileError(Exception):
    """A file is truncated or corrupt."""


def check_text(text: object) -> Row:
    """Return the text of a record, or why it is bad."""
    if text is None:
        return BadRow.MISSING_TEXT
    if not isinstance(text, str):
        return BadRow.NON_STRING_TEXT
    if not text or text.isspace():
        return BadRow.EMPTY_TEXT
    return text


def parse_json_line(line: bytes, column: str) -> Row:
    """Return the text in ``column`` of a JSON object, or why the line is bad."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _parse_lenient(line, column)
    return check_text(record.get(column)) if isinstance(record, dict) else BadRow.MISSING_TEXT


def _parse_lenient(line: bytes, column: str) -> Row:
    """Parse a line that the strict decoder refuses: ``json`` also accepts NaN and lone surrogates."""
    if not line or line.isspace():
        return BadRow.BLANK_LINE
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return BadRow.INVALID_UTF8
    except (ValueError, RecursionError):
        return BadRow.MALFORMED_JSON
    return check_record(record.get(column)) if isinstance(record, dict) else BadRow.MISSING_TEXT


def parse_text_line(line: bytes) -> Row:
    """Return the document on a line of plain text, or why the line is bad."""
    if not line or line.isspace():
        return BadRow.BLANK_LINE
    try:
        return check_text(line.decode("utf-8"))
    except UnicodeDecodeError:
        return BadRow.INVALID_UTF8


def check_record(text: object) -> Row:
    """Check a text as ``check_text`` does, and refuse lone surrogates, which other decoders let through."""
    row = check_text(text)
    return row if isinstance(row, BadRow) or _is_unicode(row) else BadRow.INVALID_UTF8


def _is_unicode(text: str) -> bool:
    """Return False for lone surrogates: JSON can encode them, the tokenizer cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
