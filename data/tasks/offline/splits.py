"""Splits that depend on the rows alone, and near-duplicates across them."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from data.tasks.sources.base import Row

Splits = dict[str, list[Row]]

WORD = re.compile("[a-z0-9]+")
NEAR = 0.6  # share of the shorter text's trigrams of words that the other text has, too


def split_rows(rows: Sequence[Row], key: Callable[[Row], str], test: int, validation: int) -> Splits:
    """Deal rows to train, validation and test by the hash of their key, whatever their order.

    Args:
        rows: of all splits; those of one key come into the same split.
        key: of a row.
        test, validation: rows of these splits, at least; a key's rows are kept together.
    """
    by_key: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_key[key(row)].append(row)
    order = sorted(by_key, key=lambda name: hashlib.sha256(name.encode()).digest())
    splits: Splits = {"train": [], "validation": [], "test": []}
    for name in order:
        split = "test" if len(splits["test"]) < test else "validation"
        if split == "validation" and len(splits["validation"]) >= validation:
            split = "train"
        splits[split] += by_key[name]
    return splits


def without_near_duplicates(rows: Sequence[Row], others: Sequence[Row], column: str) -> list[Row]:
    """Return the rows whose text is not, but for details, that of one of the others.

    Texts are near-duplicates if they have the same letters and digits, or if the shorter one shares ``NEAR`` of its
    trigrams of words with the other.

    Args:
        rows: to choose from.
        others: such as the test rows.
        column: of the text in both.
    """
    letters = {"".join(_words(other[column])) for other in others}
    trigrams = [_trigrams(other[column]) for other in others]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, found in enumerate(trigrams):
        for trigram in found:
            holders[trigram].append(place)

    def is_near(text: str) -> bool:
        own = _trigrams(text)
        shared = Counter(place for trigram in own for place in holders.get(trigram, ()))
        return "".join(_words(text)) in letters or any(
            count >= NEAR * min(len(own), len(trigrams[place])) for place, count in shared.items()
        )

    return [row for row in rows if not is_near(row[column])]


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _trigrams(text: str) -> set[tuple[str, ...]]:
    words = _words(text)
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}
