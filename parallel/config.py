"""The parallel section of a run's configuration."""

from pydantic import BaseModel, ConfigDict, Field


class ParallelConfig(BaseModel):
    """How experts are split over ranks; data parallelism replicates each expert-parallel group.

    Raises:
        ValidationError: (pydantic) an unknown key, or a value of the wrong type or out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    expert_parallel_size: int = Field(
        1, ge=1, description="Ranks that share one copy of the experts; divides the world size and model.num_experts."
    )
    expert_parallel_within_node: bool = Field(
        False, description="Refuse an expert_parallel_size whose all-to-all would leave a node."
    )
    all_to_all_chunks: int = Field(
        1,
        ge=1,
        description="Chunks of a rank's experts; while one is computed, the rows of others are exchanged. Divides the "
        "experts per rank; does not change results.",
    )
