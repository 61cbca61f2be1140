"""Numbers as a terminal shows them: short, with their units."""

import math

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def short(number: float) -> str:
    """Return ``950``, ``12.3k`` or ``1.20M``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            digits = 2 if number < 10 * size else 1 if number < 100 * size else 0
            return f"{number / size:.{digits}f}{unit}"
    return f"{number:.0f}"


def size(nbytes: float) -> str:
    """Return ``512 MiB`` or ``1.2 GiB``."""
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """Return ``45 s``, ``4 min``, ``1 h 20 min`` or ``3 d 4 h``; ``?`` if it is not finite."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 2 * _MINUTE:
        return f"{whole} s"
    if whole < 2 * _HOUR:
        return f"{round(whole / _MINUTE)} min"
    if whole < 2 * _DAY:
        minutes = round(whole / _MINUTE)
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(whole / _HOUR)
    return f"{hours // 24} d {hours % 24} h"


def table(rows: dict[str, str]) -> str:
    """Return a line per row, its name and then its text, aligned; rows without text are left out."""
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items() if text)
