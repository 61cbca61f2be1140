"""Shares of tasks in a mixture, worked by hand."""

import pytest

from data.sources.retry import DataError
from data.tasks.mixtures import CAP, mixing_rates

SIZES = {"boolq": 9_427, "cb": 250, "record": 100_730}


def test_shares_are_in_proportion_to_sizes_up_to_the_cap() -> None:
    assert CAP == 65_536
    total = 9_427 + 250 + 65_536
    expected = {"boolq": 9_427 / total, "cb": 250 / total, "record": 65_536 / total}
    assert mixing_rates(SIZES) == pytest.approx(expected, rel=1e-12)
    assert mixing_rates(SIZES, cap=None)["record"] == pytest.approx(100_730 / 110_407, rel=1e-12)
    assert mixing_rates({"cb": 250}) == {"cb": 1.0}


def test_temperature_evens_out() -> None:
    square_roots = mixing_rates({"a": 10_000, "b": 100}, temperature=2.0)
    assert square_roots == pytest.approx({"a": 100 / 110, "b": 10 / 110}, rel=1e-12)
    assert mixing_rates({"a": 10_000, "b": 100}, temperature=1e9) == pytest.approx({"a": 0.5, "b": 0.5}, rel=1e-6)
    assert mixing_rates({"a": 10_000, "b": 100}, cap=400, temperature=2.0)["a"] == pytest.approx(20 / 30, rel=1e-12)


@pytest.mark.parametrize(
    ("sizes", "options", "words"),
    [
        ({"a": 1, "b": 0}, {}, "task b has no training examples"),
        ({"a": 1}, {"cap": 0}, "cap 0"),
        ({"a": 1}, {"temperature": 0.5}, "temperature 0.5"),
        ({"a": 1}, {"temperature": float("nan")}, "temperature nan"),
    ],
)
def test_impossible_mixtures_are_refused(sizes: dict[str, int], options: dict[str, float], words: str) -> None:
    with pytest.raises(DataError, match=words):
        mixing_rates(sizes, **options)  # type: ignore[arg-type]
