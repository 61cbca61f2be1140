"""How figures stand in tables, on a terminal and in a document."""

from collections.abc import Sequence

from studies.runner.statistics import Mean


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def markdown(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of a document under its title; nothing without rows."""
    if not rows:
        return ""
    lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join([title, "", *lines])


def signed(mean: Mean | None, form: str = ".3f") -> str:
    """Return a difference with its sign and standard error, ``-`` for none."""
    if mean is None:
        return "-"
    return f"{mean.value:+{form}}" + ("" if mean.error is None else f" ± {mean.error:{form}}")


def share(mean: Mean | None) -> str:
    """Return a share in percent, ``-`` for none."""
    return "-" if mean is None else f"{mean.value:.1%}"


def number(value: float | None, form: str) -> str:
    """Return a number, ``-`` for none."""
    return "-" if value is None else format(value, form)
