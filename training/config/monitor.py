"""The monitor and profile sections of a run's configuration, below ``training``."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


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


class ProfileConfig(BaseModel):
    """Which steps are recorded, with what each rank's host and device do in them. It changes no loss."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    steps: list[int] | None = Field(
        None,
        description="First and last step that torch.profiler records, such as [100,110], into the run's folder "
        "profile/. Recorded steps are slower, and each takes megabytes: record few. null: none.",
    )
    ranks: list[int] = Field(
        [0], description="Ranks that record, such as [0,8]. All ranks are slower while one of them records."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        key = f"training.profile.steps = {self.steps}"
        if self.steps is not None:
            if len(self.steps) != 2:
                raise ValueError(f"{key}: give the first and the last step, such as [100,110]")
            first, last = self.steps
            if first < 1:
                raise ValueError(f"{key}: the first step of a run is 1")
            if first > last:
                raise ValueError(f"{key}: the last step is before the first; set [{last},{first}]")
        ranks = f"training.profile.ranks = {self.ranks}"
        if not self.ranks:
            raise ValueError(f"{ranks}: no rank would record; name one, such as [0]")
        if min(self.ranks) < 0 or len(set(self.ranks)) < len(self.ranks):
            raise ValueError(f"{ranks}: give each rank once, from 0")
        return self
