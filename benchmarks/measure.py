"""Time and memory of a step: the forward and backward pass of a module."""

import gc
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Step:
    """Forward and backward pass of ``module`` on ``x``, with an output gradient of ones."""

    def __init__(self, module: nn.Module, x: Tensor):
        self.module, self.x, self.grad = module, x, torch.ones_like(x)

    def __call__(self) -> None:
        """Run the step."""
        self.module(self.x).backward(self.grad)

    def clear(self) -> None:
        """Free the gradients, as training does after the optimizer step."""
        self.x.grad = None
        self.module.zero_grad(set_to_none=True)


def seconds(step: Callable[[], object], device: str) -> float:
    """Return the seconds of one call; on CUDA between two events."""
    if device == "cpu":
        began = time.perf_counter()
        step()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def interleaved_medians(steps: dict[str, Step], repeats: int, device: str) -> dict[str, float]:
    """Return the median seconds of each step; steps take turns, so that other load on the machine affects all alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(-1, repeats):  # the first round warms up
        for name, step in steps.items():
            taken = seconds(step, device)
            step.clear()
            if repeat >= 0:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}


def peak_bytes(step: Callable[[], None], device: str) -> int:
    """Return the peak memory of ``step`` in bytes, above the memory in use before it.

    On a CPU it comes from the profiler's record of tensor allocations, which misses memory that libraries allocate
    internally. Measure the first step of a new module, so that memory it keeps for later steps is counted.
    """
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def matmul_flops_per_second(device: str, dtype: torch.dtype, size: int = 8192) -> float:
    """Return the FLOP/s of a large square matrix product, the best of 20: the peak that a program can attain."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: torch.mm(a, b), device) for _ in range(20))
