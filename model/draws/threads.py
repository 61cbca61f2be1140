"""Many draws at once."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from model.draws.blocks import draw
from model.draws.distributions import Draw


def draw_all(draws: Iterable[Draw], threads: int = 1) -> None:
    """Make all draws. Each thread needs memory for 5 blocks, and 6 % of the largest target if that is truncated."""
    largest_first = sorted(draws, key=lambda one: -one.target.numel())
    if threads == 1:
        for one in largest_first:
            draw(one)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(draw, largest_first))  # a list, so that errors are raised
