"""The FLOP/s of matrix products that a device can reach at most: of its data sheet, or measured once."""

import re
import time
from typing import NamedTuple

import torch

# Dense products, without sparsity, in 10^12 FLOP/s: bfloat16 with float32 sums on tensor cores; float32 without TF32,
# which runs switch off. From NVIDIA's data sheets; a card is the first whose words are all in its name.
DATA_SHEETS: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250.0, 75.0),
    ("GH200", 989.4, 66.9),
    ("H200 NVL", 835.5, 60.0),
    ("H200", 989.4, 66.9),
    ("H100 NVL", 835.5, 60.0),
    ("H100 PCIe", 756.0, 51.2),
    ("H100", 989.4, 66.9),
    ("A100", 312.0, 19.5),
    ("A40", 149.7, 37.4),
    ("A10", 125.0, 31.2),
    ("L40S", 362.05, 91.6),
    ("L4", 121.0, 30.3),
)
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
    words = set(re.split(r"[ -]", card))
    for name, bf16, fp32 in DATA_SHEETS:
        if words.issuperset(name.split()):
            return (bf16 if dtype == torch.bfloat16 else fp32) * 1e12
    return None


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
