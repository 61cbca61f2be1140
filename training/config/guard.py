"""The guard section of a run's configuration."""

from pydantic import BaseModel, ConfigDict, Field


class GuardConfig(BaseModel):
    """The guard section."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    max_non_finite_steps: int = Field(
        100,
        ge=0,
        description="End the run, with a diagnosis, after so many steps in a row whose gradient is not finite; each is "
        "left out on all ranks. 0: never.",
    )
    spike_threshold: float = Field(
        0.0,
        ge=0,
        description="A loss so many robust standard deviations (1.4826 x median absolute deviation) above the median "
        "of spike_window is a spike; such as 6. 0: do not look for spikes, which saves one small all-reduce a step.",
    )
    spike_window: int = Field(128, ge=8, description="Past losses, without spikes, that a new one is compared with.")
    spike_steps: int = Field(
        3,
        ge=1,
        description="Spikes in a row before the run goes back to a checkpoint from before the first; it then leaves "
        "out the data that it read since.",
    )
    spike_margin: int = Field(
        10, ge=1, description="Steps that a checkpoint must be older than the first spike to be gone back to."
    )
    max_rollbacks: int = Field(3, ge=0, description="How often a run may go back; the next spike ends it.")
