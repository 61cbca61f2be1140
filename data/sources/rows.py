"""Rows: what one line of a file holds, a document or the reason why there is none."""

import json
from enum import Enum

import orjson


class BadRow(Enum):
    """Why a row holds no document. Such rows are counted and skipped: one bad line in a billion must not end a run."""

    BLANK_LINE = "blank_line"
    INVALID_UTF8 = "invalid_utf8"
    MALFORMED_JSON = "malformed_json"
    MISSING_TEXT = "missing_text"
    NON_STRING_TEXT = "non_string_text"
    EMPTY_TEXT = "empty_text"
    DAMAGED_FILE = "damaged_file"


Row = str | BadRow


class DamagedFileError(Exception):
    """The bytes of a file are not what its format asks for: cut off or changed."""


def check_text(text: object) -> Row:
    """The text of one record, or why it has none."""
    if text is None:
        return BadRow.MISSING_TEXT
    if not isinstance(text, str):
        return BadRow.NON_STRING_TEXT
    if not text or text.isspace():
        return BadRow.EMPTY_TEXT
    return text


def parse_json_line(line: bytes, column: str) -> Row:
    """The text in `column` of one JSON object, or why there is none."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _parse_rare_line(line, column)
    return check_text(record.get(column)) if isinstance(record, dict) else BadRow.MISSING_TEXT


def _parse_rare_line(line: bytes, column: str) -> Row:
    """As `parse_json_line`, of what a strict decoder refuses: `json` takes NaN and halves of surrogate pairs too."""
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
    """The document that a line of plain text is, or why it is none."""
    if not line or line.isspace():
        return BadRow.BLANK_LINE
    try:
        return check_text(line.decode("utf-8"))
    except UnicodeDecodeError:
        return BadRow.INVALID_UTF8


def check_record(text: object) -> Row:
    """As `check_text`, of a value that another library decoded and that may hold half of a surrogate pair."""
    row = check_text(text)
    return row if isinstance(row, BadRow) or _is_unicode(row) else BadRow.INVALID_UTF8


def _is_unicode(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can spell and no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
