"""Units that suit a number: small models are shown without zeros."""

import pytest

from training.planning.display.units import BINARY, DECIMAL, PERIODS, SECONDS, cell, share, short, told, unit_of


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (told(38.62 * 2**30, BINARY), "38.6 GiB"),
        (told(1077e9, DECIMAL), "1,077.0 GB"),
        (told(2.07 * 2**20, BINARY), "2.1 MiB"),
        (told(53 * 2**10, BINARY), "53.0 KiB"),
        (told(3e6, DECIMAL), "3.0 MB"),
        (told(0, BINARY), "0.0 KiB"),
        (told(6.41 * 86_400, PERIODS, 2), "6.41 days"),
        (told(0.41 * 86_400, PERIODS, 2), "9.84 hours"),
        (told(90, PERIODS), "1.5 minutes"),
        (told(31, PERIODS), "31.0 s"),
        (told(0.0015, SECONDS), "1.5 ms"),
        (told(3e-7, SECONDS), "0.3 µs"),
        (share(0.4), "40%"),
        (share(0.09), "9%"),
        (share(0.00092), "0.092%"),
        (share(1), "100%"),
        (short(2805.2), "2,805"),
        (short(12.34), "12.3"),
        (short(0.0345), "0.0345"),
    ],
)
def test_numbers(text: str, wanted: str):
    assert text == wanted


def test_a_column_has_one_unit_and_no_zero_for_what_is_there():
    unit = unit_of(3.9 * 2**30, BINARY)
    cells = [cell(size, unit, BINARY, 2) for size in (3.9 * 2**30, 0.01 * 2**30, 0.005 * 2**20, 0)]
    assert cells == ["3.90", "0.01", "5.12 KiB", "0.00"]
