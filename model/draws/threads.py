"""Many draws at once."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

from model.draws.blocks import draw
from model.draws.device import DeviceDraws, is_suitable
from model.draws.distributions import Draw


def draw_all(draws: Iterable[Draw], threads: int = 1, on_device: DeviceDraws | None = None) -> None:
    """Make all draws. Each thread needs memory for 5 blocks, and 6 % of the largest target if that is truncated.

    Args:
        draws: of any targets.
        threads: of the processor, that draw; 1: the calling one.
        on_device: makes those draws that it can.
    """
    left = sorted(draws, key=lambda one: -one.target.numel())  # the largest first
    if on_device is not None:
        on_device.draw(one for one in left if is_suitable(one))
        left = [one for one in left if not is_suitable(one)]
    if threads == 1:
        for one in left:
            draw(one)
        return
    of_torch = torch.get_num_threads()
    torch.set_num_threads(1)  # each of ours would start as many
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(draw, left))  # a list, so that errors are raised
    finally:
        torch.set_num_threads(of_torch)
