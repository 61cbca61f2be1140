"""The parallel section of a run's configuration."""

from pydantic import BaseModel, ConfigDict, Field


class ParallelConfig(BaseModel):
    """How the model is spread over ranks; data parallelism takes the ranks that expert parallelism leaves."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    expert_parallel_size: int = Field(
        1, ge=1, description="Ranks that share one copy of the experts; divides the world size and model.num_experts."
    )
