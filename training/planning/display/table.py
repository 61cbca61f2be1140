"""A plan as a table for a terminal. GiB are 2^30 bytes, as memory is sold; GB are 10^9 bytes, as bandwidths are."""

from collections.abc import Iterable, Sequence

from common.text import counted
from training.planning.display.units import (
    BINARY,
    DECIMAL,
    GIB,
    PERIODS,
    SECONDS,
    cell,
    memory,
    share,
    short,
    told,
    unit_of,
    with_prefix,
)
from training.planning.plan import RESERVED, Plan

#: What a GPU holds, in the order in which it is shown, and what it is.
PARTS = {
    "weights": "weights",
    "master": "fp32 master weights",
    "optimizer": "optimizer's state",
    "gathered": "gathered weights (ZeRO 3)",
    "buckets": "buffers of gradients",
    "gradients": "gradients",
    "reduction": "gradients in reduction",
    "copies": "copies for the optimizer",
    "activations": "activations",
    "reserved": "reserved",
}


def text(plan: Plan) -> str:
    """Return the table; where the layout does not fit, without the ``verdict``."""
    blocks = [_model(plan), _memory(plan), _traffic(plan), _times(plan), warnings(plan)]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def warnings(plan: Plan) -> list[str]:
    """Return a line for each of the plan's warnings."""
    return [f"warning: {warning}" for warning in plan.warnings]


def verdict(plan: Plan) -> str:
    """Return whether the layout fits and, if not, what is missing: one line."""
    card, peak = f"the {memory(plan.card.memory)} of {plan.card.name}", plan.peak
    if plan.fits:
        return f"fits: {memory(plan.needed)} of {card}, {memory(plan.card.memory - plan.needed)} to spare"
    largest = sorted(peak.parts, key=peak.parts.__getitem__, reverse=True)[:2]
    parts = ", ".join(f"{PARTS[part]} {memory(peak.parts[part])}" for part in largest)
    return (
        f"does not fit: a GPU needs {memory(plan.needed)} when the {peak.name} ({parts}), {memory(plan.missing)} more "
        f"than {card}; {_help(plan)}"
    )


def _help(plan: Plan) -> str:
    """What would need less memory, most effective first."""
    layout, peak, means = plan.layout, plan.peak, []
    if plan.reserved > RESERVED and peak.total + RESERVED <= plan.card.memory:
        return f"try a smaller --reserve than {plan.reserved / GIB:g}"
    held = sum(peak.parts.get(part, 0) for part in ("weights", "master", "optimizer", "gradients"))
    if held + plan.reserved > plan.card.memory:
        if layout.zero_stage < 3:
            means.append("a higher ZeRO stage (training.deepspeed_config)")
        if layout.expert_parallel_size < layout.gpus and plan.parameters.experts:
            means.append("a larger parallel.expert_parallel_size")
        means.append("more GPUs")
    else:
        if not layout.recompute and plan.activations_recomputed < plan.activations_kept:
            means.append("training.activation_checkpointing=true")
        if layout.micro_batch_size > 1:
            means.append("a smaller training.micro_batch_size")
        if layout.zero_stage < 3:
            means.append("a higher ZeRO stage (training.deepspeed_config)")
        if peak.parts.get("buckets"):
            means.append("a smaller zero_optimization.reduce_bucket_size")
        means.append("more GPUs")
    return f"try {' or '.join(means[:3])}"


def _model(plan: Plan) -> list[str]:
    counts, flops, layout = plan.parameters, plan.flops, plan.layout
    parts = [("experts", counts.experts), ("dense", counts.dense), ("embedding", counts.embedding),
             ("head", counts.head), ("routers", counts.router)]  # fmt: skip
    chosen = [
        f"ZeRO {layout.zero_stage}", f"expert-parallel size {layout.expert_parallel_size}",
        f"{counted(layout.accumulation, 'micro-batch', 'es')} of {layout.micro_batch_size} a step",
        "recomputation" if layout.recompute else "no recomputation", layout.precision,
    ]  # fmt: skip
    return [
        f"model   {counts.total:,} parameters, {counts.active:,} active per token",
        "        " + ", ".join(f"{name} {number:,}" for name, number in parts if number),
        f"FLOPs   {with_prefix(flops.forward_of_example)} of the forward pass of an example; training: "
        f"{with_prefix(flops.training_of_example)} an example, {with_prefix(flops.training_of_token)} a token, "
        f"{with_prefix(flops.training_of_step)} a step of {counted(layout.global_batch_size, 'sequence')}",
        f"layout  {counted(layout.gpus, 'GPU')} ({plan.card.name}) in {counted(layout.nodes, 'node')}: "
        + ", ".join(chosen),
    ]


def _memory(plan: Plan) -> list[str]:
    unit = unit_of(plan.needed, BINARY)
    rows: list[list[str]] = [[f"memory of a GPU, {unit.name}", *(moment.name for moment in plan.moments)]]

    def add(name: str, sizes: Sequence[int]) -> None:
        rows.append([f"  {name}", *(cell(size, unit, BINARY, 2) if size else "" for size in sizes)])

    for part in PARTS:
        sizes = [plan.reserved if part == "reserved" else moment.parts.get(part, 0) for moment in plan.moments]
        if any(sizes):
            add(PARTS[part], sizes)
    add("together", [moment.total + plan.reserved for moment in plan.moments])
    host = plan.host_of_rank * min(plan.layout.gpus, plan.layout.gpus_per_node)
    return [
        *_aligned(rows),
        *([verdict(plan)] if plan.fits else []),
        f"activations at their peak: {memory(plan.activations_kept)} without recomputation, "
        f"{memory(plan.activations_recomputed)} with it",
        f"host    {memory(host)} of a node for copies of checkpoints"
        + (" and states that ZeRO keeps there" if plan.states.host else "")
        + ", beside its processes",
    ]


def _traffic(plan: Plan) -> list[str]:
    messages = plan.traffic.as_row(plan.layout, plan.card)
    if not messages:
        return ["traffic none"]
    size = unit_of(max(message["on_links_bytes"] for message in messages), DECIMAL)
    time = unit_of(max(message["seconds"] for message in messages), SECONDS)
    rows: list[list[str]] = [["traffic of a GPU and step", "ranks", size.name, f"on its links, {size.name}", time.name]]
    for message in messages:
        kind = message["kind"].replace("_", "-")
        rows.append(
            [
                f"  {kind}: {message['purpose']}{' of experts' if message['experts'] and kind != 'all-to-all' else ''}",
                f"{message['ranks']:,}",
                cell(message["bytes"], size, DECIMAL, 3),
                cell(message["on_links_bytes"], size, DECIMAL, 3),
                cell(message["seconds"], time, SECONDS, 3),
            ]
        )
    return [
        *_aligned(rows),
        f"at {plan.card.node_gbs:g} GB/s within a node and {plan.card.network_gbs:g} GB/s between nodes, per GPU",
    ]


def _times(plan: Plan) -> list[str]:
    times, checkpoint = plan.times, plan.checkpoint
    unit = unit_of(times.step, SECONDS)

    def shown(seconds: float) -> str:
        return cell(seconds, unit, SECONDS, 3)

    parts = (
        ("compute", times.compute, f"at {share(times.rate)} of the peak ({times.rate_source})"),
        ("launches", times.launches, "of kernels by the host, while GPUs compute: the longer of both counts"),
        (
            "communication",
            times.communication,
            f"that GPUs wait for; links are busy for {told(times.links_total, SECONDS, 3)}",
        ),
        ("optimizer", times.optimizer, ""),
        ("together", times.step, f"MFU {share(times.mfu)}, {with_prefix(times.tokens_per_second)} tokens/s"),
    )
    rows = _aligned([["time of a step", unit.name], *([f"  {name}", shown(seconds)] for name, seconds, _ in parts)])
    notes = ["predicted", *(note for _, _, note in parts)]
    return [
        *(f"{row}  {note}".rstrip() for row, note in zip(rows, notes, strict=True)),
        f"run     {told(times.run, PERIODS, 2)} of {counted(plan.steps, 'step')}, {short(times.gpu_hours)} GPU hours",
        f"save    a checkpoint has {told(checkpoint.bytes, DECIMAL)}, written in {told(checkpoint.seconds, PERIODS)}",
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for first, *others in rows:
        numbers = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        yield f"{first:<{widths[0]}}  {'  '.join(numbers)}".rstrip()
