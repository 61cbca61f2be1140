"""What a step is measured by: points in the device's time, its kernels, and how operations are counted."""

import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import seconds

FORMULA = (
    "2 FLOPs per multiply-add of every matrix product; attention over all keys; experts: all capacity slots, filled or "
    "not; backward twice the forward; no recomputation, no element-wise work"
)


def median_seconds(call: Callable[[], object], device: str, repeats: int, warmup: int = 2) -> float:
    """Return the median seconds of a call, each timed alone."""
    for _ in range(warmup):
        call()
    return statistics.median(seconds(call, device) for _ in range(repeats))


class Marks:
    """Points in the device's time, without waiting for the device in between."""

    def __init__(self, device: str):
        self.cuda = device != "cpu"

    def mark(self) -> Any:
        """Return a point after all work so far."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        """Return the seconds between two points; waits for the later one."""
        if not self.cuda:
            return float(end - begin)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000


def profile(call: Callable[[], object], device: str, trace: Path | None = None) -> dict[str, Any]:
    """Return what a call does on the device, by torch's profiler.

    Returns:
        ``launches`` (kernels), ``copies`` (memory copies and fills), ``busy_seconds`` (in which any kernel or copy
        runs), ``wall_seconds`` (from the first to the last), ``calls`` (of torch operators on the CPU, nested ones
        included) and ``kernels``: for the 40 longest, by name, number and milliseconds.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device != "cpu":
        torch.cuda.synchronize()
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    gc.collect()
    with torch.profiler.profile(activities=activities) as profiler:
        call()
        if device != "cpu":
            torch.cuda.synchronize()
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    assert profiler.profiler is not None
    spans: list[tuple[int, int]] = []
    found: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    copies = calls = 0
    for event in profiler.profiler.kineto_results.events():
        name = event.name()
        if event.device_type() != torch.autograd.DeviceType.CUDA:
            calls += name.startswith("aten::")
        elif not event.is_user_annotation():
            spans.append((event.start_ns(), event.start_ns() + event.duration_ns()))
            copies += name.startswith(("Memcpy", "Memset"))
            found[name][0] += 1
            found[name][1] += event.duration_ns() / 1e6
    longest = sorted(found.items(), key=lambda item: -item[1][1])[:40]
    return {
        "launches": len(spans) - copies,
        "copies": copies,
        "busy_seconds": union(spans) / 1e9,
        "wall_seconds": (max(end for _, end in spans) - min(start for start, _ in spans)) / 1e9 if spans else 0.0,
        "calls": calls,
        "kernels": [{"name": name[:110], "number": int(n), "ms": round(ms, 3)} for name, (n, ms) in longest],
    }


def union(spans: list[tuple[int, int]]) -> int:
    """Return the length of the union of intervals."""
    total, reached = 0, -1
    for start, end in sorted(spans):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total
