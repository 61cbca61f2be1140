"""The monitor section of a run's configuration, below ``training``."""

from pydantic import BaseModel, ConfigDict, Field


class MonitorConfig(BaseModel):
    """What a run shows of itself beside its losses and rates. It changes no loss."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    routing: bool = Field(
        True,
        description="Statistics of the router of every sparse layer, and sizes of gradients, weights and updates by "
        "family of parameters, in rows of metrics.",
    )
    pictures: bool = Field(
        True,
        description="Pictures in TensorBoard at each evaluation: load of experts, histograms of router probabilities. "
        "Those of routers need training.monitor.routing.",
    )
    examples: int = Field(
        4, ge=0, description="Held-out examples shown in TensorBoard with their predictions; 0: none."
    )
