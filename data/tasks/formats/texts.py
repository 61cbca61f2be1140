"""A text after a prefix: closed-book questions, summaries, translations, and choices among texts."""

from collections.abc import Callable, Sequence

from data.tasks.sources.base import Row
from data.tasks.task import UNLABELED, Format, Pair


def prefixed_text(prefix: str, column: str, target: Callable[[Row], str | None], *needed: str) -> Format:
    """Return the format ``PREFIX TEXT``.

    Args:
        prefix: such as ``summarize:``.
        column: of the text.
        target: of a row; ``<unk>`` if it gives none.
        needed: other columns that a row must have.
    """

    def pairs(row: Row) -> list[Pair]:
        found = target(row)
        return [(f"{prefix} {row[column]}", UNLABELED if found is None else found)]

    return Format((column, *needed), f"{prefix} …", pairs)


def summary(text_column: str, summary_column: str) -> Format:
    """Return the format ``summarize: …``."""
    return prefixed_text("summarize:", text_column, lambda row: row[summary_column], summary_column)


def translation(source: str, target: str, source_name: str, target_name: str) -> Format:
    """Return the format ``translate English to German: …``.

    Args:
        source, target: codes of the languages, keys of the column ``translation``.
        source_name, target_name: their names in English.
    """

    def pairs(row: Row) -> list[Pair]:
        texts = row["translation"]
        return [(f"translate {source_name} to {target_name}: {texts[source]}", texts[target])]

    return Format(("translation",), f"translate {source_name} to {target_name}: …", pairs)


def choice_of_text(
    prefix: str, column: str, choices: Callable[[Row], Sequence[str]], right: Callable[[Row], int | None], *needed: str
) -> Format:
    """Return the format ``PREFIX COLUMN: TEXT choices: (A) TEXT (B) TEXT …`` with the right choice's text as target.

    Args:
        prefix: name of the task in the input.
        column: of the question.
        choices: texts of a row's choices.
        right: number of the right one, from 0; None for a row without an answer, whose target is ``<unk>``.
        needed: columns beside ``column`` that a row must have.
    """

    def pairs(row: Row) -> list[Pair]:
        texts, number = choices(row), right(row)
        lettered = " ".join(f"({chr(ord('A') + place)}) {text}" for place, text in enumerate(texts))
        target = UNLABELED if number is None else texts[number]
        return [(f"{prefix} {column}: {row[column]} choices: {lettered}", target)]

    return Format((column, *needed), f"{prefix} {column}: … choices: (A) … (B) …", pairs)
