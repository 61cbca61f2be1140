"""Metrics of tasks with classes, on 200 random predictions, against formulas written out in float64."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from data.sources.retry import DataError
from data.tasks import TASKS, get

ROWS = 200
NONSENSE = "no such label"


def drawn(name: str, seed: int) -> tuple[list[str], list[dict[str, Any]], list[int], list[int]]:
    """Predicted texts, rows, and the classes of both (-1 for a prediction that is no label)."""
    random = np.random.default_rng(seed)
    labels = get(name).labels
    assert labels is not None
    right = random.integers(len(labels), size=ROWS).tolist()
    said = [label if random.random() < 0.6 else int(random.integers(-1, len(labels))) for label in right]
    rows = [
        {"label": label, "idx": {"paragraph": i // 8, "question": i // 4, "answer": i}} for i, label in enumerate(right)
    ]
    return [NONSENSE if label < 0 else labels[label] for label in said], rows, said, right


def share(values: Sequence[bool]) -> float:
    return 100.0 * sum(values) / len(values)


def f1_of(label: int, said: Sequence[int], right: Sequence[int]) -> float:
    both = sum(s == r == label for s, r in zip(said, right, strict=True))
    return 2.0 * both / (sum(s == label for s in said) + sum(r == label for r in right))


def matthews_of(said: Sequence[int], right: Sequence[int]) -> float:
    """Gorodkin's correlation for several classes: -1, a wrong text, is one."""
    s, r = np.asarray(said), np.asarray(right)
    classes = np.union1d(s, r)
    x, y = s[:, None] == classes, r[:, None] == classes
    x, y = x - x.mean(0), y - y.mean(0)
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def expected_of(name: str, said: list[int], right: list[int]) -> dict[str, float]:
    accuracy = {"accuracy": share([s == r for s, r in zip(said, right, strict=True)])}
    # Where 0 and 1 are the classes, a text that is neither counts as the wrong one.
    binary = [1 - r if s < 0 else s for s, r in zip(said, right, strict=True)]
    if name == "cb":
        return {"mean_3class_f1": 100 * sum(f1_of(label, said, right) for label in range(3)) / 3, **accuracy}
    if name == "multirc":
        questions = [said[i : i + 4] == right[i : i + 4] for i in range(0, ROWS, 4)]
        return {"f1": 100 * f1_of(1, binary, right), "exact_match": share(questions)}
    if name in ("mrpc", "qqp"):
        return {"f1": 100 * f1_of(1, binary, right), **accuracy}
    if name == "cola":
        return {"matthews_corrcoef": 100 * matthews_of(said, right)}
    return accuracy


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.labels])
def test_metrics_of_classes(name: str) -> None:
    predictions, rows, said, right = drawn(name, seed=len(name))
    task = get(name)
    assert [task.postprocess(text, row) for text, row in zip(predictions, rows, strict=True)] == said
    expected = expected_of(name, said, right)
    assert task.metrics(predictions, rows) == pytest.approx(expected, rel=1e-12)
    assert list(task.metrics(predictions, rows)) == list(expected)
    assert task.metrics(said, rows) == pytest.approx(expected, rel=1e-12), "post-processed predictions are taken, too"
    assert task.score(expected) == pytest.approx(sum(expected.values()) / len(expected))


def drawn_choices(name: str, seed: int) -> tuple[list[str], list[dict[str, Any]], float]:
    random = np.random.default_rng(seed)
    predictions, rows, right = [], [], []
    for _ in range(ROWS):
        texts = [f"text {word}" for word in random.integers(9, size=int(random.integers(2, 6)))]
        if name == "winogrande":
            row: dict[str, Any] = {
                "sentence": "_",
                "option1": texts[0],
                "option2": texts[1],
                "answer": str(random.integers(1, 3)),
            }
            answer, texts = texts[int(row["answer"]) - 1], texts[:2]
        else:
            labels = list("ABCDE" if random.random() < 0.8 else "12345")[: len(texts)]
            place = int(random.integers(len(texts)))
            row = {"question": "?", "choices": {"text": texts, "label": labels}, "answerKey": labels[place]}
            answer = texts[place]
        predictions.append(str(random.choice([*texts, NONSENSE])))
        rows.append(row)
        right.append(predictions[-1] == answer)
    return predictions, rows, share(right)


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge", "winogrande"])
def test_accuracy_of_choices(name: str) -> None:
    predictions, rows, accuracy = drawn_choices(name, seed=5)
    assert 10 < accuracy < 60
    assert get(name).metrics(predictions, rows) == pytest.approx({"accuracy": accuracy}, rel=1e-12)


def test_accuracy_of_referents() -> None:
    random = np.random.default_rng(7)
    names = ["Tom", "the cat", "Tom's cat", "Ann"]
    # Of (said, candidate): the same name, or the cat and Tom's cat, whose apostrophe tells them apart.
    said, candidates = random.integers(4, size=ROWS), random.integers(4, size=ROWS)
    labels = random.integers(2, size=ROWS).tolist()
    rows = [{"span1_text": names[c], "label": label} for c, label in zip(candidates, labels, strict=True)]
    expected = share([int(s == c) == label for s, c, label in zip(said, candidates, labels, strict=True)])
    assert get("wsc").metrics([names[s] for s in said], rows) == pytest.approx({"accuracy": expected}, rel=1e-12)


def test_correlations_of_similarities() -> None:
    random = np.random.default_rng(8)
    scores = random.choice(np.arange(0, 5.01, 0.25), size=ROWS)
    texts = [NONSENSE if random.random() < 0.1 else f"{score + random.normal():.1f}" for score in scores]
    said = np.array([-1.0 if text == NONSENSE else float(text) for text in texts])
    right = np.array([np.round(score * 5) / 5 for score in scores])

    def pearson(x: np.ndarray, y: np.ndarray) -> float:
        x, y = x - x.mean(), y - y.mean()
        return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))

    def ranks(x: np.ndarray) -> np.ndarray:
        return np.array([(x < value).sum() + ((x == value).sum() + 1) / 2 for value in x])

    expected = {
        "pearson_corrcoef": 100 * pearson(said, right),
        "spearman_corrcoef": 100 * pearson(ranks(said), ranks(right)),
    }
    rows = [{"sentence1": "", "sentence2": "", "label": float(score)} for score in scores]
    assert get("stsb").metrics(texts, rows) == pytest.approx(expected, rel=1e-9)


NO_REFERENCES: list[tuple[str, dict[str, Any]]] = [
    ("boolq", {"label": -1}),
    ("wsc", {"label": -1, "span1_text": "x"}),
    ("stsb", {"label": -1.0}),
    ("winogrande", {"option1": "a", "option2": "b", "answer": ""}),
    ("arc_easy", {"choices": {"text": ["a"], "label": ["A"]}, "answerKey": ""}),
    ("record", {"answers": [], "idx": {"passage": 0, "query": 0}}),
    ("squad", {"answers": {"text": [], "answer_start": []}}),
    ("trivia_qa", {"answer": {"aliases": [], "value": "<unk>"}}),
]


@pytest.mark.parametrize(("name", "row"), NO_REFERENCES)
def test_rows_without_references_are_one_line(name: str, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"^task {name}: 2 of 2 rows have no reference .*validation$") as caught:
        get(name).metrics(["a", "a"], [row, row])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("predictions", "rows"), [([], []), (["True"], [{"label": 0}, {"label": 1}])])
def test_as_many_predictions_as_rows(predictions: list[str], rows: list[dict[str, Any]]) -> None:
    with pytest.raises(DataError, match=r"^task boolq: \d predictions? for \d rows?$"):
        get("boolq").metrics(predictions, rows)


def test_the_references_of_a_task_are_what_it_trains_for() -> None:
    """Predicting each row's target is perfect."""
    perfect: Callable[[str, list[dict[str, Any]]], dict[str, float]] = lambda name, rows: get(name).metrics(  # noqa: E731
        [targets for _, targets in get(name).examples(rows)], rows
    )
    squad = {"question": "Q?", "context": "c", "answers": {"text": ["U.S. (a)", "b"], "answer_start": [0, 0]}}
    assert perfect("squad", [squad]) == {"em": 100.0, "f1": 100.0}
    none = {"question": "Q?", "context": "c", "answers": {"text": [], "answer_start": []}}
    assert perfect("squad_v2", [squad, none]) == {"em": 100.0, "f1": 100.0}
    assert get("squad_v2").metrics(["unanswerable", "c"], [squad, none]) == {"em": 0.0, "f1": 0.0}
