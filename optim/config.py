"""The optimizer section of a run's configuration."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Defaults that differ for AdamW.
ADAMW_DEFAULTS = {"learning_rate": 1e-3, "warmup": "linear", "beta1": 0.9, "gradient_clipping": 1.0}
# Keys that only some optimizers or schedules use.
ADAMW_KEYS = ("unit_learning_rate", "beta2", "epsilon")
ADAFACTOR_KEYS = ("update_clipping", "min_dim_size_to_factor")
DECAY_KEYS = ("decay_steps", "floor")


class OptimizerConfig(BaseModel):
    """The optimizer and its learning-rate schedule."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Literal["adafactor", "adamw", "adamw_8bit"] = Field(
        "adafactor",
        description="Update rule; adafactor: T5's and ST-MoE's; adamw_8bit: moments of 8 bits (bitsandbytes, CUDA).",
    )
    learning_rate: float = Field(
        1e-2,
        gt=0,
        description="Peak; Adafactor: relative to the RMS of each weight tensor. Default for AdamW: 1e-3.",
    )
    unit_learning_rate: float | None = Field(
        None,
        gt=0,
        description="AdamW: peak for the parameters whose initial scale is 1: input embedding and norms. "
        "null: learning_rate. AdamW moves every weight equally, and matrices start about 30 times smaller.",
    )
    schedule: Literal["rsqrt", "constant", "linear", "cosine"] = Field(
        "rsqrt",
        description="After warmup_steps. rsqrt: 1/sqrt(step) (T5); constant; linear and cosine: decay to floor at "
        "decay_steps.",
    )
    warmup: Literal["constant", "linear"] = Field(
        "constant",
        description="Before warmup_steps: constant at the peak (T5), or linear from 0. Default for AdamW: linear.",
    )
    warmup_steps: int = Field(10_000, ge=1, description="Steps before the decay starts.")
    decay_steps: int | None = Field(
        None, ge=1, description="Step at which linear and cosine reach floor; null: training.steps."
    )
    floor: float = Field(0.0, ge=0, lt=1, description="Final value of linear and cosine, as a fraction of the peak.")
    update_clipping: float = Field(
        1.0, gt=0, description="Adafactor: largest RMS of each tensor's update, before learning rate and scale."
    )
    min_dim_size_to_factor: int = Field(
        128,
        ge=1,
        description="Adafactor: matrices whose dimensions are both at least this keep only row and column means.",
    )
    beta1: float = Field(
        0.0, ge=0, lt=1, description="Decay of the first moment; at 0 Adafactor keeps none. Default for AdamW: 0.9."
    )
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW: decay of the second moment.")
    epsilon: float = Field(1e-8, gt=0, description="AdamW: added to the square root of the second moment.")
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="Decoupled decay of matrices, multiplied by their learning rate; vectors are never decayed.",
    )
    gradient_clipping: float = Field(
        0.0, ge=0, description="Largest global gradient norm; 0: no clipping, as in T5. Default for AdamW: 1.0."
    )
    non_finite: Literal["skip", "stop"] = Field(
        "skip", description="On a gradient with infinities or NaN: skip the step on all ranks, or end the run."
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_optimizer(cls, values: Any) -> Any:
        if isinstance(values, dict) and str(values.get("name", "")).startswith("adamw"):
            return ADAMW_DEFAULTS | values
        return values

    @model_validator(mode="after")
    def _refuse_unused_keys(self) -> "OptimizerConfig":
        if self.name == "adafactor":
            self._refuse(ADAMW_KEYS, "name", "adamw")
        else:
            self._refuse(ADAFACTOR_KEYS, "name", "adafactor")
        if self.schedule in ("rsqrt", "constant"):
            self._refuse(DECAY_KEYS, "schedule", "linear or cosine")
        elif self.decay_steps is not None:
            self.check_decay(self.decay_steps, "optimizer.decay_steps")
        return self

    def _refuse(self, keys: tuple[str, ...], choice: str, other: str) -> None:
        for key in keys:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"optimizer.{key} = {getattr(self, key)} is not used with optimizer.{choice} = "
                    f"{getattr(self, choice)}: remove it, or set optimizer.{choice} = {other}"
                )

    def check_decay(self, end: int, key: str) -> None:
        """Raise ValueError if a schedule that decays until step ``end``, set by ``key``, has no step left to decay."""
        if self.schedule in ("linear", "cosine") and end <= self.warmup_steps:
            raise ValueError(
                f"{key} = {end} leaves optimizer.schedule = {self.schedule} no step to decay after "
                f"optimizer.warmup_steps = {self.warmup_steps}: raise the former or lower the latter"
            )
