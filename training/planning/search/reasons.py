"""Why layouts do not fit, told for many of them at once."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from common.text import counted
from training.planning.display.table import PARTS
from training.planning.display.units import memory
from training.planning.layout import Layout


@dataclass(frozen=True)
class TooLarge:
    """A layout that needs more memory than a card has: bytes on one GPU, at the moment of the most."""

    layout: Layout
    moment: str
    parts: dict[str, int]  # with what is reserved
    memory: int  # of the card

    @property
    def chosen(self) -> str:
        """The layout."""
        layout = self.layout
        words = f"ZeRO {layout.zero_stage}, EP {layout.expert_parallel_size}, micro-batch {layout.micro_batch_size}"
        return f"{words}, {'recomputation' if layout.recompute else 'no recomputation'}"

    @property
    def over(self) -> int:
        """Bytes that are missing."""
        return sum(self.parts.values()) - self.memory

    @property
    def over_without_activations(self) -> int:
        """Bytes that are missing, whatever the micro-batch; negative if activations alone are too much."""
        return self.over - self.parts.get("activations", 0)


@dataclass(frozen=True)
class Reason:
    """What several layouts lack: the figures are those of the layout that lacks least."""

    zero_stage: int
    expert_parallel_sizes: tuple[int, ...]
    micro_batch_sizes: tuple[int, ...]
    recompute: bool | None  # None: with and without
    layouts: int
    over: int  # bytes on one GPU
    moment: str
    parts: dict[str, int]
    states: bool  # whether there is too little memory without any activations

    def as_row(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        row = asdict(self)
        named = {"missing_bytes": "over", "peak": "moment", "peak_bytes": "parts", "without_activations": "states"}
        return row | {name: row.pop(own) for name, own in named.items()}

    @property
    def chosen(self) -> str:
        """What the layouts have in common."""
        words = [f"ZeRO {self.zero_stage}", f"EP {spread(self.expert_parallel_sizes)}"]
        if not self.states:
            words.append(f"micro-batch {spread(self.micro_batch_sizes)}")
        if self.recompute is not None:
            words.append("recomputation" if self.recompute else "no recomputation")
        return ", ".join(words)

    def __str__(self) -> str:
        """One line."""
        parts = {part: number for part, number in self.parts.items() if part != "reserved"}
        largest = sorted(parts, key=parts.__getitem__, reverse=True)[:2]
        held = ", ".join(f"{PARTS[part]} {memory(parts[part])}" for part in largest)
        least = "at least " if self.layouts > 1 else ""
        alone = " without activations" if self.states else ""
        return (
            f"{self.chosen}: {least}{memory(self.over)} too much{alone} when the {self.moment} ({held}); "
            f"{counted(self.layouts, 'layout')}"
        )


@dataclass(frozen=True)
class Refused:
    """Layouts that ``train.py`` refuses, all for one reason."""

    message: str  # of one of them
    layouts: int
    messages: int = 1  # that differ in their numbers alone

    def as_row(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """One line."""
        others = f", and {counted(self.messages - 1, 'more value')} like this" if self.messages > 1 else ""
        return f"{self.message}{others}; {counted(self.layouts, 'layout')}"


def memory_reasons(found: Sequence[TooLarge]) -> list[Reason]:
    """Group layouts that need too much: by ZeRO stage if no micro-batch fits, or else by micro-batches too.

    Expert-parallel sizes of one group are refused for the same micro-batches.
    """
    groups: dict[tuple[Any, ...], list[TooLarge]] = {}
    refused: dict[tuple[Any, ...], list[int]] = {}
    for one in found:
        if one.over_without_activations > 0:
            groups.setdefault((one.layout.zero_stage, True), []).append(one)
        else:
            refused.setdefault(_choice(one.layout), []).append(one.layout.micro_batch_size)
    for one in found:
        if one.over_without_activations <= 0:
            micro_batches = tuple(sorted(refused[_choice(one.layout)]))
            key = (one.layout.zero_stage, False, one.layout.recompute, micro_batches)
            groups.setdefault(key, []).append(one)
    return [_reason(members, states=key[1]) for key, members in sorted(groups.items())]


def _choice(layout: Layout) -> tuple[Any, ...]:
    return layout.zero_stage, layout.recompute, layout.expert_parallel_size


def _reason(members: Sequence[TooLarge], *, states: bool) -> Reason:
    least = min(members, key=lambda one: one.over_without_activations if states else one.over)
    recompute = {one.layout.recompute for one in members}
    parts = {part: size for part, size in least.parts.items() if not states or part != "activations"}
    return Reason(
        zero_stage=least.layout.zero_stage,
        expert_parallel_sizes=tuple(sorted({one.layout.expert_parallel_size for one in members})),
        micro_batch_sizes=tuple(sorted({one.layout.micro_batch_size for one in members})),
        recompute=recompute.pop() if len(recompute) == 1 else None,
        layouts=len(members),
        over=least.over_without_activations if states else least.over,
        moment=least.moment,
        parts=parts,
        states=states,
    )


def check_reasons(messages: Iterable[str]) -> list[Refused]:
    """Group what ``train.py`` says of layouts: messages that differ in numbers alone are one."""
    groups: dict[str, list[str]] = {}
    for message in messages:
        groups.setdefault("".join("#" if c.isdigit() else c for c in message), []).append(message)
    return [Refused(group[0], len(group), len(set(group))) for group in groups.values()]


def spread(values: Sequence[int]) -> str:
    """Return ``4``, ``1 and 2``, ``1, 2 and 4`` or, of more, ``1 to 64``; values are in order."""
    *first, last = values
    if len(first) > 2:
        return f"{first[0]} to {last}"
    return f"{', '.join(map(str, first))} and {last}" if first else str(last)
