"""The parallel layout that a checkpoint was written at, or that a run has now."""

from typing import Any, NamedTuple


class ParallelLayout(NamedTuple):
    """World size, expert-parallel size, ZeRO stage and precision."""

    expert_parallel_size: int
    world_size: int
    zero_stage: int
    precision: str

    @classmethod
    def of(cls, config: dict[str, Any], world_size: int, zero_stage: int) -> "ParallelLayout":
        """Return the layout of a run with this configuration (as plain values) on so many ranks."""
        return cls(config["parallel"]["expert_parallel_size"], world_size, zero_stage, config["training"]["precision"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """What decides which elements a rank holds: expert-parallel size, world size, ZeRO stage."""
        return self[:3]

    def __str__(self) -> str:
        return f"EP {self.expert_parallel_size}, world {self.world_size}, ZeRO {self.zero_stage}, {self.precision}"
