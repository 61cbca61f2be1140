"""Questions about a passage: SQuAD, TriviaQA with its documents, ReCoRD."""

import re
from collections.abc import Sequence

from data.tasks.formats.text import join_words, lower_ascii, pad_punctuation
from data.tasks.sources.base import Row
from data.tasks.task import UNLABELED, Format, Pair

UNANSWERABLE = "unanswerable"


def question_and_context() -> Format:
    """Return SQuAD's format ``question: … context: …`` with padded punctuation; the target is the first answer.

    The texts end with a space where they end with a mark, as T5's do. A question without an answer (SQuAD 2.0) has the
    target ``unanswerable``.
    """

    def pairs(row: Row) -> list[Pair]:
        question, context = pad_punctuation(row["question"]), pad_punctuation(row["context"])
        targets = [*padded_answers(row), UNANSWERABLE][0]
        return [(join_words("question:", question, "context:", context), targets)]

    return Format(("question", "context", "answers"), "question: … context: …", pairs)


def padded_answers(row: Row) -> list[str]:
    """Return the answers of a row of SQuAD with padded punctuation."""
    return [pad_punctuation(answer) for answer in row["answers"]["text"]]


def question_and_documents() -> Format:
    """Return TriviaQA's format ``question: … context: …``: an example per document and answer that is in it.

    As in T5 an answer is looked for as a regular expression, in lower case, with padded punctuation. A row whose
    documents hold no answer gives no example.
    """

    def pairs(row: Row) -> list[Pair]:
        question = pad_punctuation(row["question"])
        found: list[Pair] = []
        for document in _documents(row):
            context = pad_punctuation(document)
            for alias in row["answer"]["normalized_aliases"]:
                answer = pad_punctuation(alias)
                if _holds(lower_ascii(context), lower_ascii(answer)):
                    found.append((join_words("question:", question, "context:", context), answer))
        return found

    return Format(("question", "answer"), "question: … context: …", pairs)


def _documents(row: Row) -> Sequence[str]:
    columns = (("entity_pages", "wiki_context"), ("search_results", "search_context"))
    return [document for column, key in columns if column in row for document in row[column][key]]


def _holds(context: str, answer: str) -> bool:
    try:
        return re.search(answer, context) is not None
    except re.error:
        return answer in context


def query_and_entities() -> Format:
    """Return ReCoRD's format ``record query: … entities: … passage: …``: an example per answer.

    Highlights that the passage ends with become sentences of it. A row without answers has the target ``<unk>``.
    """

    def pairs(row: Row) -> list[Pair]:
        passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", row["passage"]).replace("\n@highlight\n", ". ")
        entities = ", ".join(row["entities"])
        inputs = f"record query: {row['query']} entities: {entities} passage: {passage}"
        return [(inputs, answer) for answer in row["answers"] or [UNLABELED]]

    columns = ("passage", "query", "entities", "answers", "idx")
    return Format(columns, "record query: … entities: …, … passage: …", pairs)
