"""The FLOP/s of matrix products that a device can reach at most: of its data sheet, or measured once."""

import time
from typing import NamedTuple

import torch

from training.planning.cards import card_of_device

SIZES = {"cuda": 8192, "cpu": 768}  # of the square matrices that are multiplied
MOST_SECONDS = 0.2  # of measuring


class Peak(NamedTuple):
    """A peak, and where it is from."""

    flops_per_second: float
    source: str  # for users

    def __str__(self) -> str:
        return f"{self.flops_per_second / 1e12:.4g} TFLOP/s ({self.source})"


def data_sheet_peak(card: str, dtype: torch.dtype) -> float | None:
    """Return the FLOP/s of a card of this name by its data sheet; None if it is not known."""
    known = card_of_device(card)
    return None if known is None else known.flops_per_second("bf16" if dtype == torch.bfloat16 else "fp32")


def measured_peak(device: str, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the fastest of some large matrix products, on as many threads as torch uses now."""
    kind = torch.device(device).type
    size = SIZES.get(kind, 1024)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        a, b = (torch.randn(size, size).to(device, dtype) for _ in range(2))
    best, began = float("inf"), time.perf_counter()
    for call in range(20):
        start = time.perf_counter()
        torch.mm(a, b)
        if kind == "cuda":
            torch.cuda.synchronize()
        if call:  # the first one also chooses a kernel
            best = min(best, time.perf_counter() - start)
        if call and time.perf_counter() - began > MOST_SECONDS:
            break
    return 2 * size**3 / best


def find_peak(device: str, precision: str) -> Peak:
    """Return the peak of this rank's device.

    Args:
        device: of this rank.
        precision: ``training.precision``, which decides the dtype of matrix products.
    """
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    name = str(dtype).removeprefix("torch.")
    if torch.device(device).type == "cuda":
        card = torch.cuda.get_device_name(device)
        peak = data_sheet_peak(card, dtype)
        if peak is not None:
            return Peak(peak, f"data sheet of {card}, {name}")
    return Peak(measured_peak(device, dtype), f"fastest of some large {name} products, measured at the start")
