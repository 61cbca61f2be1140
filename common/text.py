"""Words of messages."""


def counted(number: int, noun: str, ending: str = "s") -> str:
    """Return ``1 rank`` or ``2 ranks``.

    Args:
        number: how many; thousands are separated.
        noun: in the singular.
        ending: of the plural, appended to ``noun``.
    """
    return f"{number:,} {noun}{'' if number == 1 else ending}"
