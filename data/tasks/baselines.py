"""What a task's score must be compared with: the most frequent answer, a rule, a bag of words.

A baseline is a function of (training rows, rows) that returns a text per row, which the task's metrics judge.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from data.tasks.sources.base import Row
from data.tasks.task import Baseline

# Words after which the first noun phrase of a definition is over.
END_OF_PHRASE = frozenset(
    {
        "that", "which", "who", "whom", "whose", "where", "when", "of", "with", "in", "without", "into", "on", "for",
        "to", "from", "by", "at", "as", "or", "and", "used", "made", "having", "consisting", "containing", "being",
        "found", "formed", "growing", "especially", "usually", "often", "characterized",
    }
)  # fmt: skip


def majority(target: Callable[[Row], str]) -> Baseline:
    """Return the baseline that answers every row with the most frequent target of the training rows."""

    def predict(train: Sequence[Row], rows: Sequence[Row]) -> list[str]:
        ((answer, _),) = Counter(map(target, train)).most_common(1)
        return [answer] * len(rows)

    return predict


def bag_of_words(column: str, labels: Sequence[str]) -> Baseline:
    """Return a logistic regression on the words of a column, weighted by tf-idf (scikit-learn)."""

    def predict(train: Sequence[Row], rows: Sequence[Row]) -> list[str]:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        vectorizer = TfidfVectorizer(min_df=2, sublinear_tf=True)
        features = vectorizer.fit_transform(row[column] for row in train)
        model = LogisticRegression(C=10.0, max_iter=300).fit(features, [row["label"] for row in train])
        return [labels[label] for label in model.predict(vectorizer.transform(row[column] for row in rows))]

    return predict


def rule(answer: Callable[[Row], str]) -> Baseline:
    """Return the baseline that answers each row by a rule, without training rows."""
    return lambda train, rows: list(map(answer, rows))


def head_word(definition: str) -> str:
    """Return the last word of the first noun phrase of a definition, a guess at its hypernym."""
    text = definition.partition(") ")[2] if definition.startswith("(") else definition
    phrase: list[str] = []
    for word in text.replace(",", " , ").replace(";", " ; ").replace("(", " ( ").split():
        if phrase and (word in END_OF_PHRASE or not word[0].isalnum()):
            break
        phrase.append(word)
    return phrase[-1] if phrase else definition


def first_words(text: str, number: int) -> str:
    """Return the first words of a text."""
    return " ".join(text.split()[:number])
