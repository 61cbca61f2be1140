"""Words of messages, and numbers that they advise."""

from collections.abc import Sequence
from math import isqrt


def counted(number: int, noun: str, ending: str = "s") -> str:
    """Return ``1 rank`` or ``2 ranks``.

    Args:
        number: how many; thousands are separated.
        noun: in the singular.
        ending: of the plural, appended to ``noun``.
    """
    return f"{number:,} {noun}{'' if number == 1 else ending}"


def spans(numbers: Sequence[int]) -> str:
    """Return ``1, 3-5, 8`` for 1, 3, 4, 5, 8, which ascend."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1] = [found[-1][0], number]
        else:
            found.append([number])
    return ", ".join("-".join(map(str, span)) for span in found)


def either(words: Sequence[object]) -> str:
    """Return ``1``, ``1 or 2`` or ``1, 2 or 4``."""
    *first, last = map(str, words)
    return f"{', '.join(first)} or {last}" if first else last


def divisors(number: int) -> list[int]:
    """Return the divisors of a positive number, in order."""
    small = [divisor for divisor in range(1, isqrt(number) + 1) if number % divisor == 0]
    return small + [number // divisor for divisor in reversed(small) if divisor * divisor != number]


def most_divisor(number: int, most: int) -> int:
    """Return the largest divisor of a positive number that is at most ``most``, which is positive."""
    return max(divisor for divisor in divisors(number) if divisor <= most)


def neighbours(number: int, numbers: Sequence[int]) -> list[int]:
    """Return the largest of ``numbers``, which ascend, that is below a number, and the smallest that is above it."""
    below, above = [n for n in numbers if n < number], [n for n in numbers if n > number]
    return below[-1:] + above[:1]
