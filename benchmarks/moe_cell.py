"""One cell of the comparison of sparse layers: all contenders at one size and dtype."""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from benchmarks.measure import Step, interleaved_medians, matmul_flops_per_second, peak_bytes
from benchmarks.moe_peers import CONTENDERS, LIMITS, SLOTS, Case, build

FUSED = "fused"  # the form of the limit that the layer itself uses; each weight gradient is written once
assert FUSED in LIMITS


def measure_cell(case: Case, repeats: int, contenders: Collection[str] = tuple(CONTENDERS)) -> dict[str, Any]:
    """Measure time and memory of every contender and of every form of the limit.

    Args:
        case: sizes, dtype and device.
        repeats: timed steps of each; their median counts.
        contenders: names of those to measure.

    Returns:
        The case; ``limit``, the name of the fastest form; ``limit_seconds`` and ``limit_memory`` of every form; and in
        ``rows``, for each contender and the fastest form: ``seconds``, ``over_limit`` (ratio of times), ``memory``
        (peak bytes beyond weights and their gradients), ``memory_over_limit`` (minus that of the fused form, in units
        of T * d elements), ``tflops`` and, on CUDA, ``of_peak``.
    """
    memory, steps = {}, {}
    for name, make in {**{name: CONTENDERS[name].make for name in contenders}, **LIMITS}.items():
        module = build(make, case)
        step = Step(module, make_input(case, name))
        gradients = sum(p.numel() * p.element_size() for p in module.parameters())
        memory[name] = peak_bytes(step, case.device) - gradients
        step.clear()
        steps[name] = step
    seconds = interleaved_medians(steps, repeats, case.device)
    limit = min(LIMITS, key=lambda name: seconds[name])
    flops = 3 * 6 * case.rows * case.d_model * case.d_ff  # three products, forward and twice backward
    peak = matmul_flops_per_second(case.device, case.dtype) if case.device == "cuda" else None
    unit = case.tokens * case.d_model * case.dtype.itemsize
    rows: dict[str, dict[str, float]] = {}
    for name in (*contenders, limit):
        rows["limit" if name == limit else name] = {
            "seconds": seconds[name],
            "over_limit": seconds[name] / seconds[limit],
            "memory": memory[name],
            "memory_over_limit": (memory[name] - memory[FUSED]) / unit,
            "tflops": flops / seconds[name] / 1e12,
        } | ({} if peak is None else {"of_peak": flops / seconds[name] / peak})
    return {
        "tokens": case.tokens,
        "experts": case.experts,
        "d_model": case.d_model,
        "d_ff": case.d_ff,
        "dtype": str(case.dtype).removeprefix("torch."),
        "limit": limit,
        "limit_seconds": {name: seconds[name] for name in LIMITS},
        "limit_memory": {name: memory[name] for name in LIMITS},
        "rows": rows,
    }


def make_input(case: Case, name: str) -> torch.Tensor:
    """Make the input that fills 1.25 T rows of the experts: tokens ``[B, L, d]`` or, for the limit, rows ``[R, d]``."""
    if name in LIMITS:
        shape: tuple[int, ...] = (case.rows, case.d_model)
    else:
        tokens = int(case.tokens * SLOTS / CONTENDERS[name].rows_per_token)
        length = next(length for length in (256, 64, 16, 1) if tokens % length == 0)
        shape = (tokens // length, length, case.d_model)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return nn.Parameter(x.to(device=case.device, dtype=case.dtype))
