"""Numbers with their nouns."""

from common.text import counted, spans


def test_singular_and_plural():
    assert [counted(n, "rank") for n in (0, 1, 2, 1000)] == ["0 ranks", "1 rank", "2 ranks", "1,000 ranks"]
    assert [counted(n, "micro-batch", "es") for n in (1, 4)] == ["1 micro-batch", "4 micro-batches"]


def test_spans_of_numbers():
    assert spans([]) == ""
    assert spans([4]) == "4"
    assert spans([0, 1, 3, 5, 6, 7]) == "0-1, 3, 5-7"
