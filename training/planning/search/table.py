"""A search as a terminal shows it."""

from common.text import counted
from training.planning.search.candidates import overrides
from training.planning.search.find import CLOSE, Found, Search
from training.planning.search.reasons import size

GIB = 2**30
SHOWN = 10  # layouts
COLUMNS = (
    "ZeRO", "EP", "chunks", "micro-batch", "accumulation", "recomputed", "GiB", "compute, s", "links, s", "step, s",
)  # fmt: skip


def text(found: Search) -> str:
    """Return the table of the best layouts, the command line of the best, and why others do not fit."""
    card = f"{found.card.name} of {found.card.memory / GIB:.1f} GiB"
    lines = [f"{counted(found.gpus, 'GPU')} ({card}): {len(found.fits)} of {counted(found.tried, 'layout')} fit"]
    if found.fits:
        rows = [COLUMNS, *(_row(one) for one in found.fits[:SHOWN])]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["", *("  ".join(map(str.rjust, row, widths)) for row in rows)]
        if len(found.fits) > SHOWN:
            lines.append(f"… and {len(found.fits) - SHOWN} more")
        lines += [
            "",
            "EP: parallel.expert_parallel_size. GiB: what a GPU needs. step: compute, launches, communication that is",
            f"not hidden; up to {CLOSE - 1:.0%} slower is equal, and first is what leaves a tenth of the memory,",
            "recomputes nothing, keeps experts within a node and needs least memory.",
            "",
            f"best: {' '.join(overrides(found.fits[0].config))}",
        ]
    for title, reasons in (("too large:", found.too_large), ("refused:", found.refused)):
        if reasons:
            lines += ["", title, *(f"  {reason}" for reason in reasons)]
    return "\n".join(lines)


def nothing_fits(found: Search) -> str:
    """Return what would help where no layout fits: one line."""
    if not found.too_large:
        return f"no layout of {counted(found.gpus, 'GPU')} is accepted: see the reasons above"
    least = min(found.too_large, key=lambda reason: reason.over)
    return (
        f"no layout of {counted(found.gpus, 'GPU')} fits {found.card.name}: the nearest, {least.chosen}, lacks at "
        f"least {size(least.over)} on each: try more GPUs (--gpus) or a card with more memory (--card)"
    )


def _row(one: Found) -> tuple[str, ...]:
    layout = one.layout
    figures = (layout.zero_stage, layout.expert_parallel_size, layout.all_to_all_chunks, layout.micro_batch_size,
               layout.accumulation)  # fmt: skip
    seconds = (one.times.compute, sum(one.times.links.values()), one.times.step)
    recomputed = "yes" if layout.recompute else "no"
    return (*map(str, figures), recomputed, f"{one.needed / GIB:.1f}", *(f"{time:.3f}" for time in seconds))
