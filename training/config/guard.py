"""The guard section of a run's configuration."""

from pydantic import BaseModel, ConfigDict, Field


class GuardConfig(BaseModel):
    """When the guard skips steps, rolls the run back or ends it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    max_non_finite_steps: int = Field(
        100,
        ge=0,
        description="End the run, with a diagnosis, after this many consecutive steps whose gradient is not finite. "
        "Such steps are skipped on all ranks. 0: never.",
    )
    spike_threshold: float = Field(
        0.0,
        ge=0,
        description="A loss is a spike if it is this many robust standard deviations (1.4826 x median absolute "
        "deviation) above the median of spike_window losses; such as 6. 0: no detection, which saves a small "
        "all-reduce per step.",
    )
    spike_window: int = Field(
        128, ge=8, description="Number of past losses, without spikes, that a loss is compared with."
    )
    spike_steps: int = Field(
        3,
        ge=1,
        description="Consecutive spikes after which the run rolls back to a checkpoint from before the first. It skips "
        "the data that it has read since.",
    )
    spike_margin: int = Field(
        10, ge=1, description="Steps by which a checkpoint must precede the first spike to be rolled back to."
    )
    max_rollbacks: int = Field(3, ge=0, description="Rollbacks that a run may make; the next series of spikes ends it.")
