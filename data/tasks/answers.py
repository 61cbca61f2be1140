"""What answers mean: classes, choices among texts, pronouns' referents, numbers and free texts."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from data.tasks.formats.keyed import class_number, similarity_text
from data.tasks.formats.pronouns import names_referent
from data.tasks.formats.reading import UNANSWERABLE, padded_answers
from data.tasks.sources.base import Row
from data.tasks.task import Answers


def one_group(row: Row) -> Hashable:
    """Every row is of the same group: metrics that judge rows by themselves."""
    return None


def class_answers(labels: Sequence[str], group: Callable[[Row], Hashable] = one_group) -> Answers:
    """Return answers that are the exact text of a label; its number, -1 for any other text.

    Args:
        labels: texts of the classes that the column ``label`` numbers.
        group: of a row, for metrics of groups.
    """
    texts = tuple(labels)
    return Answers(
        read=lambda text, row: texts.index(text) if text in texts else -1,
        reference=lambda row: class_number(row, texts),
        choices=lambda row: texts,
        labels=texts,
        group=group,
    )


def chosen_text(choices: Callable[[Row], Sequence[str]], right: Callable[[Row], int | None]) -> Answers:
    """Return answers that are the exact text of one of a row's choices; its number, -1 for any other text.

    Choices of the same text are the same answer, the first of them.
    """

    def read(text: str, row: Row) -> int:
        texts = tuple(choices(row))
        return texts.index(text) if text in texts else -1

    def reference(row: Row) -> int | None:
        number = right(row)
        return None if number is None else read(choices(row)[number], row)

    return Answers(read=read, reference=reference, choices=lambda row: tuple(choices(row)))


def referent_answers() -> Answers:
    """Return WSC's answers: whether the text names the candidate."""
    return Answers(read=names_referent, reference=lambda row: None if row["label"] == -1 else int(row["label"]))


def similarity_answers() -> Answers:
    """Return STS-B's answers: the number that the text is, -1.0 if it is none; compared with the rounded score."""

    def read(text: str, row: Row) -> float:
        try:
            return float(text)
        except ValueError:
            return -1.0

    return Answers(read=read, reference=lambda row: None if row["label"] < 0 else float(similarity_text(row)))


def text_answers(reference: Callable[[Row], Any], group: Callable[[Row], Hashable] = one_group) -> Answers:
    """Return answers that are any text.

    Args:
        reference: the right text of a row, or a list of them; None or an empty list if it has none.
        group: of a row, for metrics of groups.
    """
    return Answers(read=lambda text, row: text, reference=lambda row: reference(row) or None, group=group)


def squad_answers() -> Answers:
    """Return SQuAD 1.1's answers, which are compared with the row's answers with padded punctuation."""
    return text_answers(padded_answers)


def squad_v2_answers() -> Answers:
    """Return SQuAD 2.0's answers: ``unanswerable`` means none, and is right where the row has none."""
    return Answers(
        read=lambda text, row: "" if text.strip() == UNANSWERABLE else text,
        reference=lambda row: padded_answers(row) or [""],
    )
