"""Rows of a shard: each is a document, or the reason why it is bad."""

import json
from collections.abc import Mapping, Sequence
from enum import Enum

import orjson

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class BadRow(Enum):
    """Why a row holds no document. Bad rows are counted and skipped: one bad line in a billion must not end a run."""

    BLANK_LINE = "blank_line"
    INVALID_UTF8 = "invalid_utf8"
    MALFORMED_JSON = "malformed_json"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_TEXT = "missing_text"
    NON_STRING_TEXT = "non_string_text"
    EMPTY_TEXT = "empty_text"
    DAMAGED_FILE = "damaged_file"


Row = str | BadRow


# What the rows of a kind need, for messages.
ADVICE = {
    BadRow.INVALID_UTF8: "the text must be UTF-8",
    BadRow.MALFORMED_JSON: 'each line must be one JSON object, such as {"text": "…"}, without a comma behind it',
    BadRow.NOT_AN_OBJECT: 'each line must be one JSON object, such as {"text": "…"}',
    BadRow.MISSING_TEXT: "the object has no such key: set {key} to the key of the text",
    BadRow.NON_STRING_TEXT: "the text is not a string: set {key} to the key of the text",
    BadRow.DAMAGED_FILE: "the file is truncated or damaged: copy it again",
}


def advise(counts: Mapping[str, int], key: str) -> str:
    """Return what the most frequent kind of bad rows needs, or nothing if there is no advice.

    Args:
        counts: bad rows by ``BadRow.value``.
        key: config key or option that names the text column.
    """
    found = [kind for kind in ADVICE if counts.get(kind.value)]
    return ADVICE[max(found, key=lambda kind: counts[kind.value])].replace("{key}", key) if found else ""


class MissingColumnError(Exception):
    """A table has no column of the configured name; holds the names that it has."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        super().__init__(", ".join(names))


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
    return check_text(record.get(column)) if isinstance(record, dict) else BadRow.NOT_AN_OBJECT


def _parse_lenient(line: bytes, column: str) -> Row:
    """Parse a line that the strict decoder refuses: ``json`` also accepts NaN and lone surrogates.

    A byte-order mark is passed over, at the start of any line: files that begin with one are also joined.
    """
    line = line.removeprefix(BYTE_ORDER_MARK)
    if not line or line.isspace():
        return BadRow.BLANK_LINE
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return BadRow.INVALID_UTF8
    except (ValueError, RecursionError):
        return BadRow.MALFORMED_JSON
    return check_record(record.get(column)) if isinstance(record, dict) else BadRow.NOT_AN_OBJECT


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
