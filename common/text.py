"""Words of messages."""

from collections.abc import Sequence


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
