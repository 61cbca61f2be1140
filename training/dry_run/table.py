"""What a dry run found, for a terminal and as JSON. Memory is in GiB (2^30 bytes), traffic and files in GB (10^9)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from common.text import counted
from training.config.run import RunConfig
from training.dry_run.agreement import STATES, Checked
from training.dry_run.checks import Cluster
from training.dry_run.files import Files
from training.dry_run.measured import Groups, Measured
from training.dry_run.rehearsal import BACKWARD, FORWARD, Step
from training.dry_run.shapes import Stack
from training.dry_run.text import Text
from training.monitoring.terminal.words import table
from training.planning.display.table import PARTS, warnings
from training.planning.display.units import memory
from training.planning.plan import Plan

NAMES_SHOWN = 3


@dataclass(frozen=True)
class Found:
    """Everything about one rank."""

    config: RunConfig
    cluster: Cluster
    plan: Plan
    text: Text
    shapes: dict[str, Stack]
    measured: Measured
    step: Step
    files: Files
    checked: Checked
    seconds: float
    peak_memory: int  # bytes of this process

    def as_row(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        groups = self.measured.groups
        process = self.cluster.process
        return {
            "config": self.config.model_dump(mode="json"),
            "rank": {"rank": process.rank, "node": self.cluster.node, "gpu": process.local_rank},
            "world_size": process.world_size,
            "parameters": {
                "total": self.measured.parameters,
                "active": self.plan.parameters.active,
                "built": self.measured.own,
                "partition": self.measured.partition,
            },
            "groups": groups._asdict(),
            "experts": {layer: [held.start, held.stop] for layer, held in self.measured.experts.items()},
            "micro_batch": {name: stack.as_row() for name, stack in self.shapes.items()},
            "all_to_all_bytes": list(all_to_alls(self.step)),
            "traffic": [
                {"kind": kind, "ranks": ranks, "step_bytes": nbytes}
                for (kind, ranks), nbytes in sorted(self.step.bytes().items())
            ],
            "states_bytes": self.measured.bytes,
            "text": asdict(self.text),
            "checkpoint": self.files.as_row() | {"all_ranks_bytes": self.plan.checkpoint.bytes},
            "checked": {
                "to_the_byte": self.checked.to_the_byte,
                "estimated": [one._asdict() for one in self.checked.estimated],
            },
            "plan": self.plan.as_row(),
            "seconds": round(self.seconds, 1),
            "peak_memory_bytes": self.peak_memory,
        }

    def as_text(self) -> str:
        """Return the table."""
        plan, measured, layout = self.plan, self.measured, self.plan.layout
        process, t = self.cluster.process, self.config.training
        chosen = f"expert-parallel size {layout.expert_parallel_size}, ZeRO {layout.zero_stage}, {layout.precision}"
        last = f"the checkpoint of all ranks has {decimal(plan.checkpoint.bytes)}"
        found = table(
            {
                "dry run": f"rank {process.rank:,} of {process.world_size:,}: node {self.cluster.node}, "
                f"GPU {process.local_rank}; {self.config.run_dir} is not touched",
                "model": f"{measured.parameters:,} parameters, {plan.parameters.active:,} active per token",
                "share": f"{measured.own:,} parameters are built here; the rank's partition has {measured.partition:,}",
                "layout": f"{chosen}{', recomputation' if layout.recompute else ''}, "
                f"{counted(layout.nodes, 'node')} of up to {counted(layout.gpus_per_node, 'GPU')}",
                "groups": group_text(measured.groups),
                "experts": experts_text(measured.experts),
                "batch": f"{counted(t.global_batch_size, 'sequence')} a step = "
                f"{counted(layout.accumulation, 'micro-batch', 'es')} of {layout.micro_batch_size} x "
                f"{counted(layout.gpus, 'rank')}",
                **{name: stack_text(stack) for name, stack in self.shapes.items()},
                "all-to-all": all_to_all_text(self.step),
                "traffic": traffic_text(self.step),
                "states": ", ".join(f"{PARTS[part]} {memory(measured.bytes[part])}" for part in STATES),
                "memory": f"planned: at most {memory(plan.needed)} of the {memory(plan.card.memory)} of "
                f"{plan.card.name}, when the {plan.peak.name}",
                "streams": f"{abbreviated(self.text.streams)} of {self.config.data.num_streams:,}",
                "shards": shards_text(self.text),
                "unread": unread_text(self.text.unread),
                "files": f"{self.files.folder}/: "
                + ", ".join(f"{file} {decimal(nbytes)}" for file, nbytes in self.files.own.items()),
                "rank 0": f"adds {', '.join(self.files.added)}; {last}",
                "checked": checked_text(self.checked),
                "took": f"{self.seconds:.0f} s, {memory(self.peak_memory)} of memory",
            }
        )
        return "\n\n".join([found, *(["\n".join(warnings(plan))] if plan.warnings else [])])


def decimal(nbytes: float) -> str:
    """Return ``12.3 GB``, ``4.5 MB``, ``6.7 kB`` or ``8 bytes``, of powers of ten."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= unit:
            return f"{nbytes / unit:,.1f} {name}"
    return f"{nbytes} bytes"


def group_text(groups: Groups) -> str:
    """Return the ranks of each group."""
    named = groups._asdict().items()
    return "; ".join(f"{name.replace('_', '-')} {abbreviated(ranks)}" for name, ranks in named if ranks)


def abbreviated(numbers: Sequence[int]) -> str:
    """Return ``0-511 (512)``, ``13, 77, … 461 (8)`` or ``1, 2``."""
    count = f" ({len(numbers):,})"
    if len(numbers) <= NAMES_SHOWN:
        return ", ".join(map(str, numbers))
    if list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}{count}"
    return f"{numbers[0]}, {numbers[1]}, … {numbers[-1]}{count}"


def experts_text(experts: dict[str, range]) -> str:
    """Return the experts of each sparse layer, layers with the same ones together."""
    layers: dict[range, list[str]] = {}
    for layer, held in experts.items():
        layers.setdefault(held, []).append(layer)
    texts = []
    for held, names in layers.items():
        shown = ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
        texts.append(f"{abbreviated(held)} in {counted(len(names), 'layer')} ({shown})")
    return "; ".join(texts)


def stack_text(stack: Stack) -> str:
    """Return the shapes of a micro-batch in one stack."""
    text = f"{stack.sequences} x {stack.length} tokens"
    if not stack.groups:
        return text
    return (
        f"{text}, {counted(stack.groups, 'group')} of {stack.size:,}, {counted(stack.capacity, 'slot')} per expert, "
        f"{stack.rows:,} rows for experts"
    )


def all_to_alls(step: Step) -> Iterable[dict[str, Any]]:
    """Yield calls and bytes of the all-to-alls of one micro-batch, by phase and size."""
    last = (one for one in step.last if one.kind == "all_to_all")
    for (phase, nbytes), calls in Counter((one.phase, one.nbytes) for one in last).items():
        yield {"phase": phase, "calls": calls, "bytes": nbytes}


def all_to_all_text(step: Step) -> str:
    """Return the all-to-alls of one micro-batch."""
    texts = {
        phase: " + ".join(
            f"{one['calls']} x {decimal(one['bytes'])}" for one in all_to_alls(step) if one["phase"] == phase
        )
        for phase in (FORWARD, BACKWARD)
    }
    return "; ".join(f"{phase} {text}" for phase, text in texts.items() if text)


def traffic_text(step: Step) -> str:
    """Return the bytes of a step by kind, and by ranks of the group."""
    kinds: dict[str, list[str]] = {}
    for (kind, ranks), nbytes in sorted(step.bytes().items()):
        kinds.setdefault(kind.replace("_", "-"), []).append(f"{decimal(nbytes)} ({counted(ranks, 'rank')})")
    return "; ".join(f"{kind} {', '.join(texts)}" for kind, texts in kinds.items()) + " a step" if kinds else "none"


def unread_text(unread: Sequence[str]) -> str:
    """Return the first of what was not looked at, and how many more there are."""
    more = len(unread) - NAMES_SHOWN
    return "; ".join([*unread[:NAMES_SHOWN], *([f"and {more} more, see --json"] if more > 0 else [])])


def checked_text(checked: Checked) -> str:
    """Return what was compared with the plan, and what the plan only estimates."""
    names = [PARTS.get(part, part) for part in checked.to_the_byte]
    text = f"{', '.join(names)} are those of the plan, to the byte"
    for kind, planned, made in checked.estimated:
        text += f", but for {kind.replace('_', '-')}: {decimal(planned)} planned, {decimal(made)} made"
    return text


def shards_text(text: Text) -> str:
    """Return how many shards of each source the rank reads, and the first ones."""
    sources = []
    for name, count in text.counts.items():
        first = ", ".join(text.shards[name][:NAMES_SHOWN])
        sources.append(f"{name}: {counted(count, 'shard')}, first {first}")
    return "; ".join(sources)
