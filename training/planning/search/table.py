"""A search as a terminal shows it."""

from textwrap import wrap

from common.text import counted, either
from training.planning.display.units import BINARY, SECONDS, Unit, cell, memory, unit_of
from training.planning.plan import RESERVED
from training.planning.search.candidates import overrides
from training.planning.search.find import CLOSE, Found, Search

SHOWN = 10  # layouts
LAYOUT = ("ZeRO", "EP", "chunks", "micro-batch", "accumulation", "recomputed")
TIMES = ("compute", "launches", "communication", "step")
WIDTH = 110
EXPLAINED = (
    "EP: parallel.expert_parallel_size. {unit}: what a GPU needs. step: the longer of compute and launches, the "
    "communication that GPUs wait for, and the optimizer. Order: steps that are up to {close:.0%} slower than the "
    "fastest are its equals, then follow the next and its equals; among equals first is what leaves a tenth of the "
    "memory, recomputes nothing, keeps experts within a node, needs least memory, has the lowest ZeRO stage and the "
    "smallest EP."
)


def text(found: Search) -> str:
    """Return the table of the best layouts, the command line of the best, and why others do not fit."""
    card = f"{found.card.name} of {memory(found.card.memory)}"
    lines = [f"{counted(found.gpus, 'GPU')} ({card}): {len(found.fits)} of {counted(found.tried, 'layout')} fit"]
    if found.fixed:
        lines.append(f"fixed, as given on the command line: {' '.join(found.fixed)}")
    if found.fits:
        shown = found.fits[:SHOWN]
        size = unit_of(max(one.needed for one in shown), BINARY)
        time = unit_of(max(one.times.step for one in shown), SECONDS)
        columns = (*LAYOUT, size.name, *(f"{name}, {time.name}" for name in TIMES))
        rows = [columns, *(_row(one, size, time) for one in shown)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["", *("  ".join(map(str.rjust, row, widths)) for row in rows)]
        if len(found.fits) > SHOWN:
            lines.append(f"… and {len(found.fits) - SHOWN} more")
        lines += [
            "",
            *wrap(EXPLAINED.format(unit=size.name, close=CLOSE - 1), WIDTH),
            "",
            f"best: {' '.join(overrides(found.fits[0].config))}",
        ]
    for title, reasons in (("too large:", found.too_large), ("refused:", found.refused)):
        if reasons:
            lines += ["", title, *(f"  {reason}" for reason in reasons)]
    if found.warnings:
        lines += ["", *(f"warning: {line}" for line in found.warnings)]
    return "\n".join(lines)


def nothing_fits(found: Search) -> str:
    """Return what would help where no layout fits: one line."""
    nearest, means = found.nearest, []
    assert nearest is not None, "a search that finds nothing at all is refused"
    reserved = nearest.parts["reserved"]
    if nearest.over <= reserved - RESERVED:
        means.append("a smaller --reserve")
    if found.fixed:
        means.append(f"to leave out {' '.join(found.fixed)}")
    means += ["more GPUs (--gpus)", "a card with more memory (--card)"]
    return (
        f"no layout of {counted(found.gpus, 'GPU')} fits {found.card.name}: the nearest, {nearest.chosen}, lacks "
        f"{memory(nearest.over)} on each: try {either(means)}"
    )


def _row(one: Found, size: Unit, time: Unit) -> tuple[str, ...]:
    layout, times = one.layout, one.times
    figures = (layout.zero_stage, layout.expert_parallel_size, layout.all_to_all_chunks, layout.micro_batch_size,
               layout.accumulation)  # fmt: skip
    parts = (times.compute, times.launches, times.communication, times.step)
    seconds = (cell(part, time, SECONDS, 3) for part in parts)
    return (*map(str, figures), "yes" if layout.recompute else "no", cell(one.needed, size, BINARY, 1), *seconds)
