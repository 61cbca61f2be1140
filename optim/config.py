"""The optimizer section of a run's configuration."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class OptimizerConfig(BaseModel):
    """Which optimizer, and its learning-rate schedule."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Literal["adamw"] = Field("adamw", description="Update rule.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak, reached at the end of the warm-up.")
    unit_learning_rate: float | None = Field(
        None,
        gt=0,
        description="The same for the parameters that begin at the scale of 1, the input embedding and the norms' "
        "scales; null: learning_rate. AdamW moves every weight equally, and matrices begin 30 times smaller.",
    )
    warmup: Literal["constant", "linear"] = Field(
        "linear", description="Before warmup_steps: constant at the peak (T5), or linear from 0."
    )
    warmup_steps: int = Field(10_000, ge=1, description="Steps before the 1/sqrt(step) decay begins.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the second moment.")
    epsilon: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled decay of matrices; vectors are never decayed.")
    gradient_clipping: float = Field(1.0, ge=0, description="Largest global gradient norm; 0: no clipping.")
