"""Bytes and seconds in units that suit them: in a sentence each in its own, in a column of a table all in one."""

from collections.abc import Sequence
from typing import NamedTuple


class Unit(NamedTuple):
    """A unit, and the smallest number of it that is told in it."""

    name: str
    size: float
    least: float = 0.1


GIB, GB = 2**30, 10**9
BINARY = (Unit("GiB", GIB), Unit("MiB", 2**20), Unit("KiB", 2**10))  # of memory
DECIMAL = (Unit("GB", GB), Unit("MB", 10**6), Unit("kB", 10**3))  # of files and traffic
SECONDS = (Unit("s", 1), Unit("ms", 1e-3), Unit("µs", 1e-6))
PERIODS = (Unit("days", 86_400, 1), Unit("hours", 3600, 1), Unit("minutes", 60, 1), *SECONDS)


def unit_of(size: float, units: Sequence[Unit]) -> Unit:
    """Return the largest unit of which there is enough; the smallest if there is too little of all."""
    return next((unit for unit in units if size >= unit.least * unit.size), units[-1])


def told(size: float, units: Sequence[Unit], digits: int = 1) -> str:
    """Return a size with its unit, as ``38.6 GiB``."""
    unit = unit_of(size, units)
    return f"{size / unit.size:,.{digits}f} {unit.name}"


def cell(size: float, unit: Unit, units: Sequence[Unit], digits: int) -> str:
    """Return a size in the unit of its column or, where that would show as 0, with a unit of its own."""
    number = f"{size / unit.size:,.{digits}f}"
    return told(size, units, digits) if size and float(number.replace(",", "")) == 0 else number


def memory(size: float) -> str:
    """Return bytes of memory, as ``38.6 GiB``."""
    return told(size, BINARY)


def share(number: float) -> str:
    """Return ``40%`` or, of less than a tenth, ``9.1%`` or ``0.032%``."""
    return f"{number:.0%}" if number >= 0.0995 else f"{100 * number:.2g}%"


def short(number: float) -> str:
    """Return ``1,231``, ``12.3`` or ``0.0123``."""
    return f"{number:,.0f}" if number >= 99.95 else f"{number:.3g}"


def with_prefix(number: float) -> str:
    """Return ``1.71T`` or ``950``."""
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 0.9995 * 10**power:
            return f"{number / 10**power:.3g}{prefix}"
    return f"{number:.3g}"
