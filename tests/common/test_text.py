"""Numbers with their nouns."""

from hypothesis import given
from hypothesis import strategies as st

from common.text import counted, divisors, either, most_divisor, neighbours, spans


def test_singular_and_plural():
    assert [counted(n, "rank") for n in (0, 1, 2, 1000)] == ["0 ranks", "1 rank", "2 ranks", "1,000 ranks"]
    assert [counted(n, "micro-batch", "es") for n in (1, 4)] == ["1 micro-batch", "4 micro-batches"]


def test_spans_of_numbers():
    assert spans([]) == ""
    assert spans([4]) == "4"
    assert spans([0, 1, 3, 5, 6, 7]) == "0-1, 3, 5-7"


def test_choices():
    assert [either(words) for words in ([1], [1, 2], ["a", "b", "c"])] == ["1", "1 or 2", "a, b or c"]


@given(st.integers(1, 500), st.integers(1, 500))
def test_divisors(number: int, most: int):
    assert divisors(number) == [n for n in range(1, number + 1) if number % n == 0]
    assert most_divisor(number, most) == max(n for n in range(1, most + 1) if number % n == 0)


def test_neighbours():
    assert neighbours(3, [1, 2, 4, 8]) == [2, 4]
    assert neighbours(100, [1, 2, 4, 8]) == [8]
    assert neighbours(1, [2, 4]) == [2]
