"""hypernym: the word above a noun of WordNet, from its definition."""

from pathlib import Path

from data.archives.debian import read_deb
from data.archives.download import Archive
from data.sources.retry import DataError
from data.tasks.offline.splits import Splits, split_rows
from data.tasks.sources.base import Row

WORDNET = Archive(
    "apt", "wordnet-base=1:3.0-37", "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752", 6.5
)
NOUNS = "usr/share/wordnet/data.noun"
TEST_ROWS, VALIDATION_ROWS = 2000, 1000


def hypernym_rows(package: Path) -> Splits:
    """Return a row per noun that has one: its definition without examples, and the words of its first hypernym.

    Raises:
        DataError: the package does not hold WordNet.
    """
    try:
        lines = read_deb(package, lambda name: name == NOUNS)[NOUNS].decode("utf-8").splitlines()
    except (ValueError, KeyError) as error:
        raise DataError(f"{package} does not hold {NOUNS}: remove it and run again") from error
    nouns = dict(map(_parse, (line for line in lines if not line.startswith(" "))))
    rows: dict[str, Row] = {}
    for words, gloss, above in nouns.values():
        if above in nouns and gloss:
            rows.setdefault(gloss, {"word": words[0], "gloss": gloss, "hypernyms": nouns[above][0]})
    return split_rows(list(rows.values()), lambda row: str(row["gloss"]), TEST_ROWS, VALIDATION_ROWS)


def _parse(line: str) -> tuple[str, tuple[list[str], str, str]]:
    """Return a line of ``data.noun`` as (offset, (words, definition, offset of its first hypernym or nothing)).

    The format is that of wndb(5WN): offset, file, type, the number of words in hexadecimal, words with a number each,
    the number of pointers, pointers of four fields each, and the gloss after a bar.
    """
    fields, _, gloss = line.partition(" | ")
    offset, _, _, count, *rest = fields.split(" ")
    words = [word.replace("_", " ") for word in rest[: 2 * int(count, 16) : 2]]
    pointers = rest[2 * int(count, 16) + 1 :]
    above = next((pointers[i + 1] for i in range(0, len(pointers) - 3, 4) if pointers[i] == "@"), "")
    definition = gloss.partition('; "')[0].strip()
    return offset, (words, definition, above)
