"""A plan as a table for a terminal. GiB are 2^30 bytes, as memory is sold; GB are 10^9 bytes, as bandwidths are."""

from collections.abc import Iterable, Sequence

from common.text import counted
from training.planning.plan import Plan

GIB, GB = 2**30, 10**9
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
    card, peak = f"the {_gib(plan.card.memory)} of {plan.card.name}", plan.peak
    if plan.fits:
        return f"fits: {_gib(plan.needed)} of {card}, {_gib(plan.card.memory - plan.needed)} to spare"
    largest = sorted(peak.parts, key=peak.parts.__getitem__, reverse=True)[:2]
    parts = ", ".join(f"{PARTS[part]} {_gib(peak.parts[part])}" for part in largest)
    return (
        f"does not fit: a GPU needs {_gib(plan.needed)} when the {peak.name} ({parts}), {_gib(plan.missing)} more than "
        f"{card}; {_help(plan)}"
    )


def _help(plan: Plan) -> str:
    """What would need less memory, most effective first."""
    layout, peak, means = plan.layout, plan.peak, []
    held = sum(peak.parts.get(part, 0) for part in ("weights", "master", "optimizer", "gradients"))
    if held + plan.reserved > plan.card.memory:
        if layout.zero_stage < 3:
            means.append("a higher ZeRO stage (training.deepspeed_config)")
        if layout.expert_parallel_size < layout.gpus and plan.parameters.experts:
            means.append("a larger parallel.expert_parallel_size")
        means.append("more GPUs")
    else:
        if not layout.recompute and plan.activations_recomputed < plan.activations_kept:
            means.append("training.activation_checkpointing = true")
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
        f"FLOPs   {_si(flops.forward_of_example)} of the forward pass of an example; training: "
        f"{_si(flops.training_of_example)} an example, {_si(flops.training_of_token)} a token, "
        f"{_si(flops.training_of_step)} a step of {counted(layout.global_batch_size, 'sequence')}",
        f"layout  {counted(layout.gpus, 'GPU')} ({plan.card.name}) in {counted(layout.nodes, 'node')}: "
        + ", ".join(chosen),
    ]


def _memory(plan: Plan) -> list[str]:
    rows: list[list[str]] = [["memory of a GPU, GiB", *(moment.name for moment in plan.moments)]]
    for part in PARTS:
        sizes = [moment.parts.get(part, 0) for moment in plan.moments]
        if part == "reserved":
            sizes = [plan.reserved] * len(plan.moments)
        if any(sizes):
            rows.append([f"  {PARTS[part]}", *(f"{size / GIB:.2f}" if size else "" for size in sizes)])
    rows.append(["  together", *(f"{(moment.total + plan.reserved) / GIB:.2f}" for moment in plan.moments)])
    host = plan.host_of_rank * min(plan.layout.gpus, plan.layout.gpus_per_node)
    return [
        *_aligned(rows),
        *([verdict(plan)] if plan.fits else []),
        f"activations at their peak: {_gib(plan.activations_kept)} without recomputation, "
        f"{_gib(plan.activations_recomputed)} with it",
        f"host    {_gib(host)} of a node for copies of checkpoints"
        + (" and states that ZeRO keeps there" if plan.states.host else "")
        + ", beside its processes",
    ]


def _traffic(plan: Plan) -> list[str]:
    rows: list[list[str]] = [["traffic of a GPU and step", "ranks", "GB", "on its links, GB", "seconds"]]
    for message in plan.traffic.as_row(plan.layout, plan.card):
        kind = message["kind"].replace("_", "-")
        rows.append(
            [
                f"  {kind}: {message['purpose']}{' of experts' if message['experts'] and kind != 'all-to-all' else ''}",
                f"{message['ranks']:,}",
                f"{message['bytes'] / GB:.3f}",
                f"{message['on_links_bytes'] / GB:.3f}",
                f"{message['seconds']:.4f}",
            ]
        )
    if len(rows) == 1:
        return ["traffic none"]
    return [
        *_aligned(rows),
        f"at {plan.card.node_gbs:g} GB/s within a node and {plan.card.network_gbs:g} GB/s between nodes, per GPU",
    ]


def _times(plan: Plan) -> list[str]:
    times, checkpoint = plan.times, plan.checkpoint
    return [
        f"step    {times.step:.3f} s, MFU {times.mfu:.0%}, {_si(times.tokens_per_second)} tokens/s: compute "
        f"{times.compute:.3f} s at {times.rate:.0%} of the peak ({times.rate_source}), links {times.links_total:.3f} s",
        f"run     {times.days:,.2f} days of {counted(plan.steps, 'step')}, {times.gpu_hours:,.0f} GPU hours",
        f"save    a checkpoint has {checkpoint.bytes / GB:,.1f} GB, written in {checkpoint.seconds:,.1f} s",
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for first, *others in rows:
        numbers = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        yield f"{first:<{widths[0]}}  {'  '.join(numbers)}".rstrip()


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB"


def _si(number: float) -> str:
    for power, unit in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 0.9995 * 10**power:
            return f"{number / 10**power:.3g}{unit}"
    return f"{number:.3g}"
