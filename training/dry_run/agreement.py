"""The plan's numbers against those of the real modules: a difference is a fault of this program, not of its user."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from training.config.run import RunConfig
from training.dry_run.measured import Measured
from training.dry_run.rehearsal import Step
from training.planning.layout import Layout
from training.planning.plan import Plan
from training.planning.states import states_of
from training.planning.traffic import traffic_of

STATES = ("weights", "master", "optimizer", "gradients")


def differences(config: RunConfig, plan: Plan, rank: int, measured: Measured, step: Step) -> Iterator[str]:
    """Yield a line for each number of the plan that the rehearsal contradicts.

    Args:
        config: of the run.
        plan: for the same configuration.
        rank: that was rehearsed.
        measured: its engine.
        step: its collectives.
    """
    layout: Layout = plan.layout
    yield from _unequal("parameters", plan.parameters.total, measured.parameters)
    states = states_of(config, layout, rank)
    if not states.host:  # what ZeRO moves to the host is not moved in a dry run
        for part in STATES:
            yield from _unequal(f"{part} of rank {rank}, bytes", getattr(states, part), measured.bytes[part])
    planned, made = planned_bytes(config, layout), step.bytes()
    for kind, ranks in sorted(planned.keys() | made.keys()):
        if kind not in estimated(layout):
            what = f"{kind} of {ranks} ranks, bytes a step"
            yield from _unequal(what, planned[kind, ranks], made[kind, ranks])


class Estimate(NamedTuple):
    """A kind of collective, all groups together, that the plan estimates: bytes of a step."""

    kind: str
    planned_bytes: int
    made_bytes: int


class Checked(NamedTuple):
    """What the plan says of the rank that was rehearsed, where it does not differ."""

    to_the_byte: list[str]  # of which every number is equal
    estimated: list[Estimate]  # what is not: see ``estimated``


def checked(config: RunConfig, plan: Plan, step: Step) -> Checked:
    """Return what ``differences`` has compared, for a plan that it does not contradict."""
    planned, made = planned_bytes(config, plan.layout), step.bytes()
    estimates = []
    for kind in estimated(plan.layout):
        of_plan, of_step = (sum(n for (of, _), n in found.items() if of == kind) for found in (planned, made))
        if any(planned[key] != made[key] for key in planned.keys() | made.keys() if key[0] == kind):
            estimates.append(Estimate(kind, of_plan, of_step))
    return Checked(["parameters", *(() if plan.states.host else STATES), "traffic"], estimates)


def planned_bytes(config: RunConfig, layout: Layout) -> Counter[tuple[str, int]]:
    """Return the plan's bytes of a step by kind and ranks of the group, as ``Step.bytes``."""
    planned: Counter[tuple[str, int]] = Counter()
    for message in traffic_of(config, layout).messages:
        planned[message.kind, message.ranks] += message.bytes
    return planned


def estimated(layout: Layout) -> tuple[str, ...]:
    """Return the kinds of collectives that the plan does not count exactly at every setting.

    What ZeRO 3 gathers again depends on what it has kept from module to module, within the DeepSpeed file's limits.
    """
    return ("all_gather",) if layout.zero_stage == 3 else ()


def _unequal(what: str, planned: int, made: int) -> Iterator[str]:
    if planned != made:
        yield f"{what}: {planned:,} planned, {made:,} in the real modules"
