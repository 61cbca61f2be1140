"""Documents of a bounded size from long texts, in units that the split into training and validation keeps together."""

from collections.abc import Iterable

# A document. Parts of a long text are about this long: short enough for shards of equal size.
DOCUMENT_CHARACTERS = 4000

# What is held out as a whole, such as a file of code: one or several documents.
Unit = list[str]


def join_parts(parts: Iterable[str], separator: str = "\n") -> Unit:
    """Join consecutive parts into documents of at most ``DOCUMENT_CHARACTERS``.

    A longer part is cut between its lines; a longer line is a document itself.

    Args:
        parts: paragraphs, verses, statements or functions, in order; blank ones are dropped.
        separator: between two parts of a document.
    """
    documents: list[str] = []
    current: list[str] = []
    size = 0
    for part in parts:
        if not part or part.isspace():
            continue
        is_long = len(part) > DOCUMENT_CHARACTERS
        if current and (is_long or size + len(part) > DOCUMENT_CHARACTERS):
            documents.append(separator.join(current))
            current, size = [], 0
        if is_long and "\n" in part:
            documents += join_parts(part.split("\n"))
            continue
        current.append(part)
        size += len(separator) + len(part)
    return [*documents, separator.join(current)] if current else documents


def alone(documents: Iterable[str]) -> list[Unit]:
    """Return units of one document each, each text once, without surrounding blanks."""
    texts = (document.strip() for document in documents)
    return [[text] for text in dict.fromkeys(text for text in texts if text)]
