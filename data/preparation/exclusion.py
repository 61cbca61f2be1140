"""Documents to keep out of the training text, such as the test inputs of a task, known by hashes of their text."""

import hashlib
import re
from pathlib import Path


def text_hash(text: str) -> str:
    """Return the hash of a document: SHA-256 of its text in UTF-8, each run of white space as one blank, none around.

    White space does not count, as it does not for T5's tokenizer.
    """
    return hashlib.sha256(" ".join(text.split()).encode("utf-8")).hexdigest()


def read_hashes(file: Path | None) -> tuple[frozenset[str], str | None]:
    """Read a file of hashes, one per line; blank lines and what follows ``#`` are comments.

    Returns:
        (hashes, fingerprint of them); (none, None) without a file.

    Raises:
        ValueError: a line is something else.
        OSError: the file cannot be read.
    """
    if file is None:
        return frozenset(), None
    hashes = set()
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        word = line.partition("#")[0].strip().lower()
        if word and not re.fullmatch("[0-9a-f]{64}", word):
            raise ValueError(
                f"--exclude {file}: line {number} is not a SHA-256 hash of 64 hexadecimal digits: write one hash per "
                "line, as data.preparation.exclusion.text_hash gives it"
            )
        if word:
            hashes.add(word)
    return frozenset(hashes), hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()
