"""The table of results as text and as Markdown: a line per metric, the model's figures beside all others."""

from collections.abc import Callable, Iterator, Sequence

from training.tasks.paper import MODELS
from training.tasks.scores import Result

Line = dict[str, str]

WORDS = ("task", "split", "metric")  # columns of text
FIRST = ("task", "split", "rows", "metric")
CITATION = (
    "Dense-L and ST-MoE-L: Zoph et al. 2022, validation rows. ST-MoE-32B: the same as public lists quote it, mostly on "
    "other splits."
)


def lines(results: Sequence[Result]) -> tuple[list[str], list[Line]]:
    """Return the columns that hold anything, and the cells of each line."""
    found = [line for result in results for line in _lines(result)]
    names = list(dict.fromkeys(name for line in found for name in line))
    last = [model for model in MODELS if model in names]
    between = [name for name in names if name not in (*FIRST, *last)]
    return [*FIRST, *between, *last], found


def _lines(result: Result) -> Iterator[Line]:
    for metric in result.generated or result.likeliest:
        numbers = {
            "generated": result.generated.get(metric),
            "likeliest": result.likeliest.get(metric),
            **{name: metrics.get(metric) for name, metrics in result.baselines.items()},
            **result.paper.get(metric, {}),
        }
        cells = {name: f"{value:.1f}" for name, value in numbers.items() if value is not None}
        yield {"task": result.name, "split": result.split, "rows": f"{result.examples:,}", "metric": metric} | cells


def markdown(results: Sequence[Result]) -> str:
    """Return the table as Markdown."""
    return _table(results, lambda cells: f"| {' | '.join(cells)} |", "---")


def text(results: Sequence[Result]) -> str:
    """Return the table with aligned columns."""
    names, found = lines(results)
    widths = [max(len(name), *(len(line.get(name, "")) for line in found)) for name in names]

    def line(cells: Sequence[str]) -> str:
        aligned = zip(names, cells, widths, strict=True)
        padded = (cell.ljust(width) if name in WORDS else cell.rjust(width) for name, cell, width in aligned)
        return "  ".join(padded).rstrip()

    return _table(results, line, None)


def _table(results: Sequence[Result], line: Callable[[Sequence[str]], str], rule: str | None) -> str:
    names, found = lines(results)
    rows = [line(names)]
    if rule is not None:
        rows.append(line([rule if name in WORDS else f"{rule}:" for name in names]))
    rows += [line([cells.get(name, "") for name in names]) for cells in found]
    if any(result.paper for result in results):
        rows += ["", CITATION]
    return "\n".join(rows)
