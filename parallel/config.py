"""The parallel section of a run's configuration."""

from pydantic import BaseModel, ConfigDict, Field


class ParallelConfig(BaseModel):
    """How the model is spread over ranks; data parallelism takes the ranks that expert parallelism leaves."""

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
        description="Parts in which rows travel to their experts while other parts are computed; divides the experts "
        "of a rank. Does not change a result.",
    )
