"""Exact match and F1 of words, the best over the answers of a question: SQuAD's and TriviaQA's evaluation."""

import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from data.tasks.task import Metric

ARTICLES = re.compile(r"\b(a|an|the)\b")
SQUAD_MARKS = str.maketrans("", "", string.punctuation)
TRIVIA_QA_MARKS = str.maketrans(dict.fromkeys(string.punctuation + "\u2018\u2019\u00b4`_", " "))


def normalize_squad(text: str) -> str:
    """Return the text in lower case, without punctuation and articles, with single spaces."""
    return _without_articles(text.lower().translate(SQUAD_MARKS))


def normalize_trivia_qa(text: str) -> str:
    """Return the text as ``normalize_squad`` does, but with spaces in place of punctuation, curly quotes included."""
    return _without_articles(text.lower().translate(TRIVIA_QA_MARKS))


def _without_articles(text: str) -> str:
    return " ".join(ARTICLES.sub(" ", text).split())


def best_match(normalize: Callable[[str], str], *, may_be_unanswerable: bool = False) -> Metric:
    """Return the metrics ``em`` and ``f1``: means over questions of the best value over the question's answers.

    Args:
        normalize: of answers and predictions.
        may_be_unanswerable: whether F1 is 1 for a prediction and an answer that are both empty (SQuAD 2.0), else 0.
    """

    def metric(
        references: Sequence[Sequence[str]], predictions: Sequence[str], groups: Sequence[Hashable]
    ) -> dict[str, float]:
        exact, overlap = [], []
        for answers, prediction in zip(references, predictions, strict=True):
            said = normalize(prediction)
            right = [normalize(answer) for answer in answers]
            exact.append(max(said == answer for answer in right))
            overlap.append(max(word_f1(answer, said, may_be_unanswerable) for answer in right))
        return {"em": 100 * float(np.mean(exact)), "f1": 100 * float(np.mean(overlap))}

    return metric


def word_f1(answer: str, prediction: str, may_be_unanswerable: bool = False) -> float:
    """Return the F1 of the words of a prediction, counted with their repetitions. Both texts are normalized."""
    said, right = prediction.split(), answer.split()
    if may_be_unanswerable and not (said and right):
        return float(said == right)
    common = (Counter(said) & Counter(right)).total()
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(right)
    return 2 * precision * recall / (precision + recall)


def first_of_group(metric: Metric) -> Metric:
    """Return a metric of the first row of each group (ReCoRD: a question counts once, however many answers it has)."""

    def of_first(
        references: Sequence[Sequence[str]], predictions: Sequence[str], groups: Sequence[Hashable]
    ) -> dict[str, float]:
        places = {group: place for place, group in reversed(list(enumerate(groups)))}
        kept = sorted(places.values())
        return metric(*([values[place] for place in kept] for values in (references, predictions, groups)))

    return of_first


squad = best_match(normalize_squad)
squad_v2 = best_match(normalize_squad, may_be_unanswerable=True)
trivia_qa = best_match(normalize_trivia_qa)
