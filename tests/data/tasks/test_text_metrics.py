"""Metrics of tasks whose answers are texts, on 200 random predictions, against the official definitions written out."""

import math
import re
import string
from collections import Counter
from typing import Any

import numpy as np
import pytest

from data.tasks import get

ROWS = 200
QUOTES = "\u2018\u2019\u00b4`"
WORDS = [
    "the",
    "a",
    "an",
    "Cat",
    "cat",
    "dog,",
    "dog",
    "U.S.",
    "don't",
    "1,000",
    "\u2018so\u2019",
    "re_do",
    "sun",
    "It's",
    "x-ray",
]


def texts(random: np.random.Generator, most: int = 6, least: int = 1) -> str:
    return " ".join(random.choice(WORDS, size=int(random.integers(least, most + 1))))


def squad_normal(text: str) -> str:
    """As the official evaluation script of SQuAD 1.1 does it."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def trivia_qa_normal(text: str) -> str:
    """As the official evaluation script of TriviaQA does it."""
    text = "".join(" " if c in set(string.punctuation + QUOTES) else c for c in text.replace("_", " ").lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split()).strip()


def word_f1(said: str, right: str) -> float:
    common = sum(min(said.split().count(word), right.split().count(word)) for word in set(said.split()))
    return 2.0 * common / (len(said.split()) + len(right.split())) if common else 0.0


def best(said: list[str], right: list[list[str]], normal: Any) -> dict[str, float]:
    exact = [max(normal(s) == normal(answer) for answer in answers) for s, answers in zip(said, right, strict=True)]
    f1 = [max(word_f1(normal(s), normal(answer)) for answer in answers) for s, answers in zip(said, right, strict=True)]
    return {"em": 100.0 * sum(exact) / len(exact), "f1": 100.0 * sum(f1) / len(f1)}


def drawn_answers(seed: int) -> tuple[list[str], list[list[str]]]:
    random = np.random.default_rng(seed)
    right = [[texts(random) for _ in range(int(random.integers(1, 5)))] for _ in range(ROWS)]
    said = [str(random.choice(answers)) if random.random() < 0.3 else texts(random) for answers in right]
    return said, right


@pytest.mark.parametrize(
    ("name", "normal"),
    [("natural_questions", squad_normal), ("web_questions", squad_normal), ("trivia_qa", trivia_qa_normal),
     ("trivia_qa_wikipedia", trivia_qa_normal), ("trivia_qa_documents", trivia_qa_normal), ("hypernym", squad_normal)],
)  # fmt: skip
def test_the_best_over_answers(name: str, normal: Any) -> None:
    said, right = drawn_answers(seed=len(name))
    rows = [{"answer": {"aliases": a} if name.startswith("trivia") else a, "answers": a, "hypernyms": a} for a in right]
    found = get(name).metrics(said, rows)
    assert 20 < found["em"] < found["f1"] < 90
    assert found == pytest.approx(best(said, right, normal), rel=1e-12)
    assert get(name).score(found) == found["em"]


def test_squad_compares_with_padded_answers() -> None:
    said, right = drawn_answers(seed=1)
    rows = [{"answers": {"text": answers}} for answers in right]

    def pad(text: str) -> str:
        return re.sub(r"\s+", " ", "".join(f" {c} " if c in string.punctuation else c for c in text))

    padded = [[pad(answer) for answer in answers] for answers in right]
    assert get("squad").metrics(said, rows) == pytest.approx(best(said, padded, squad_normal), rel=1e-12)
    assert get("squad").metrics([answers[0] for answers in padded], rows)["em"] == 100.0


def test_squad_2_knows_questions_without_answer() -> None:
    said, right = drawn_answers(seed=2)
    right = [[] if i % 3 == 0 else [answer.replace(".", "") for answer in answers] for i, answers in enumerate(right)]
    said = ["unanswerable" if i % 4 == 0 else text.replace(".", "") for i, text in enumerate(said)]
    meant = ["" if text == "unanswerable" else text for text in said]

    def pad(text: str) -> str:
        return re.sub(r"\s+", " ", "".join(f" {c} " if c in string.punctuation else c for c in text))

    exact, f1 = [], []
    for text, answers in zip(map(squad_normal, meant), right, strict=True):
        normal = [squad_normal(pad(answer)) for answer in answers] or [""]
        exact.append(text in normal)
        f1.append(max(float(text == answer) if not text or not answer else word_f1(text, answer) for answer in normal))
    expected = {"em": 100 * sum(exact) / ROWS, "f1": 100 * sum(f1) / ROWS}
    assert get("squad_v2").metrics(said, [{"answers": {"text": a}} for a in right]) == pytest.approx(
        expected, rel=1e-12
    )


def test_record_counts_the_first_row_of_a_query() -> None:
    """Rows that were repeated per answer, as T5 repeats them, count once."""
    said, right = drawn_answers(seed=3)
    groups = np.random.default_rng(4).integers(40, size=ROWS)
    rows = [{"answers": right[g], "idx": {"passage": int(g) // 3, "query": int(g)}} for g in groups]
    first = sorted({int(g): i for i, g in reversed(list(enumerate(groups)))}.values())
    expected = best([said[i] for i in first], [right[groups[i]] for i in first], squad_normal)
    assert get("record").metrics(said, rows) == pytest.approx(expected, rel=1e-12)


def f_measure(hits: int, said: int, right: int) -> float:
    return 2.0 * hits / (said + right) if hits else 0.0


def tokens(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def rouge_n(said: str, right: str, n: int) -> float:
    def grams(text: str) -> Counter[tuple[str, ...]]:
        words = tokens(text)
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    a, b = grams(said), grams(right)
    return f_measure((a & b).total(), a.total(), b.total())


def subsequence(right: list[str], said: list[str]) -> list[int]:
    """Places in ``right`` of a longest common subsequence, the last matches where there are several (Lin 2004)."""
    table = [[0] * (len(said) + 1) for _ in range(len(right) + 1)]
    for i in range(1, len(right) + 1):
        for j in range(1, len(said) + 1):
            table[i][j] = (
                table[i - 1][j - 1] + 1 if right[i - 1] == said[j - 1] else max(table[i - 1][j], table[i][j - 1])
            )
    places, i, j = [], len(right), len(said)
    while i and j:
        if right[i - 1] == said[j - 1]:
            places.append(i - 1)
            i, j = i - 1, j - 1
        elif table[i][j - 1] > table[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return places


def rouge_l_sum(said: str, right: str) -> float:
    """Union of the subsequences with all sentences, each word counted as often as both texts have it."""
    said_lines = [tokens(line) for line in said.replace(" . ", " .\n").split("\n") if tokens(line)]
    right_lines = [tokens(line) for line in right.replace(" . ", " .\n").split("\n") if tokens(line)]
    left_said, left_right = (
        Counter(w for line in said_lines for w in line),
        Counter(w for line in right_lines for w in line),
    )
    hits, sizes = 0, (left_said.total(), left_right.total())
    for line in right_lines:
        for place in sorted({place for other in said_lines for place in subsequence(line, other)}):
            word = line[place]
            if left_said[word] > 0 and left_right[word] > 0:
                hits, left_said[word], left_right[word] = hits + 1, left_said[word] - 1, left_right[word] - 1
    return f_measure(hits, *sizes)


@pytest.mark.parametrize(
    ("name", "column"), [("xsum", "summary"), ("cnn_dailymail", "highlights"), ("synopsis", "synopsis")]
)
def test_rouge_is_the_mean_of_f_measures(name: str, column: str) -> None:
    random = np.random.default_rng(len(name))

    def summary() -> str:
        return (
            str(random.choice([" . ", "\n"])).join(texts(random, 8, 2) for _ in range(int(random.integers(1, 4))))
            + " ."
        )

    said, right = [summary() for _ in range(ROWS)], [summary() for _ in range(ROWS)]
    pairs = list(zip(said, right, strict=True))
    expected = {
        "rouge1": 100 * sum(rouge_n(s, r, 1) for s, r in pairs) / ROWS,
        "rouge2": 100 * sum(rouge_n(s, r, 2) for s, r in pairs) / ROWS,
        "rougeLsum": 100 * sum(rouge_l_sum(s, r) for s, r in pairs) / ROWS,
    }
    found = get(name).metrics(said, [{column: text} for text in right])
    assert found == pytest.approx(expected, rel=1e-9)
    assert get(name).score(found) == found["rouge2"]


@pytest.mark.parametrize("code", ["de", "fr"])
def test_bleu_of_the_corpus(code: str) -> None:
    """Papineni et al. (2002): the geometric mean of clipped n-gram precisions, with the brevity penalty."""
    random = np.random.default_rng(11)
    plain = [word for word in WORDS if word.isalpha()]
    right = [" ".join(random.choice(plain, size=12)) for _ in range(ROWS)]
    said = [" ".join(word for word in text.split() if random.random() < 0.9) for text in right]
    hits, counts = np.zeros(4), np.zeros(4)
    for s, r in zip(said, right, strict=True):
        for n in range(1, 5):
            a, b = ([tuple(t.split()[i : i + n]) for i in range(len(t.split()) - n + 1)] for t in (s, r))
            hits[n - 1] += (Counter(a) & Counter(b)).total()
            counts[n - 1] += len(a)
    lengths = [sum(len(text.split()) for text in side) for side in (said, right)]
    penalty = math.exp(min(0.0, 1 - lengths[1] / lengths[0]))
    expected = 100 * penalty * math.exp(np.log(hits / counts).mean())
    rows = [{"translation": {code: text, "en": "-"}} for text in right]
    assert get(f"wmt14_en{code}").metrics(said, rows) == pytest.approx({"bleu": expected}, rel=1e-9)
