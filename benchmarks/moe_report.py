"""Output of ``moe_layer``: Markdown, JSON and plot."""

import json
from pathlib import Path
from typing import Any

from benchmarks.moe_peers import CONTENDERS
from common.strict_json import to_json


def format_cell(cell: dict[str, Any]) -> str:
    """Format a cell as a Markdown table."""
    gpu = any("of_peak" in row for row in cell["rows"].values())
    title = f"T = {cell['tokens']}, E = {cell['experts']}, d = {cell['d_model']}, {cell['d_ff']}, {cell['dtype']}"
    lines = [
        f"\n{title} (limit: {cell['limit']})\n",
        "| | ms | time over limit | TFLOP/s | peak memory, MB | beyond the limit's, T x d elements |"
        + (" of GEMM peak |" if gpu else ""),
        "| --- | --- | --- | --- | --- | --- |" + (" --- |" if gpu else ""),
    ]
    for name, row in cell["rows"].items():
        line = (
            f"| {name} | {row['seconds'] * 1e3:.1f} | {row['over_limit']:.2f} | {row['tflops']:.3g} "
            f"| {row['memory'] / 1e6:.1f} | {row['memory_over_limit']:.2f} |"
        )
        lines.append(line + (f" {row['of_peak']:.2f} |" if gpu else ""))
    return "\n".join(lines)


def format_ranks(ranks: dict[str, Any]) -> str:
    """Format the weak scaling of two ranks as a paragraph."""
    one, two = (ranks["seconds"][size] * 1e3 for size in (1, 2))
    return (
        f"\nTwo gloo ranks, one thread each, {ranks['tokens']} tokens per rank, {ranks['experts']} experts, float32: "
        f"{one:.0f} ms at expert-parallel size 1, {two:.0f} ms at 2: efficiency {ranks['efficiency']:.2f}; "
        f"{ranks['all_to_all_bytes'] / 1e6:.1f} MB and {ranks['all_to_all_seconds'] * 1e3:.0f} ms of all-to-all a step"
    )


def write_json(results: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write the results with the settings of each contender; return the content of the file.

    Cells of an earlier run with the same device, threads and torch version are kept unless this run measured them
    again, so that a long comparison may be measured in parts.
    """
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if all(earlier.get(key) == results[key] for key in ("device", "threads", "torch")):
        measured = {_cell_key(cell) for cell in results["cells"]}
        kept = [cell for cell in earlier["cells"] if _cell_key(cell) not in measured]
        results = {**results, "cells": sorted(kept + results["cells"], key=_cell_key)}
        results.setdefault("ranks", earlier.get("ranks"))
    results["notes"] = {name: contender.note for name, contender in CONTENDERS.items()}
    path.write_text(to_json(results, indent=1) + "\n", encoding="utf-8")
    return results


def _cell_key(cell: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(cell[key] for key in ("d_model", "d_ff", "tokens", "dtype", "experts"))


def plot(results: dict[str, Any], path: Path) -> None:
    """Plot time over the limit and memory beyond it, with a group of bars per cell."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = results["cells"]
    labels = [f"T {c['tokens']}\nE {c['experts']}\n{c['dtype']}" for c in cells]
    figure, axes = pyplot.subplots(2, 1, figsize=(1.6 * len(cells) + 3, 8), layout="constrained")
    quantities = (
        ("over_limit", "time over limit"),
        ("memory_over_limit", "peak memory beyond the limit's, T x d elements"),
    )
    for axis, (key, label) in zip(axes, quantities, strict=True):
        for index, name in enumerate(CONTENDERS):
            width = 0.8 / len(CONTENDERS)
            positions = [cell + (index - len(CONTENDERS) / 2 + 0.5) * width for cell in range(len(cells))]
            axis.bar(positions, [c["rows"][name][key] for c in cells], width, label=name)
        axis.set_xticks(range(len(cells)), labels)
        axis.set_ylabel(label)
        axis.grid(axis="y", alpha=0.3)
    axes[0].axhline(1, color="black", linewidth=0.8)
    axes[0].legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
