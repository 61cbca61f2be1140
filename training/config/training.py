"""The training section of a run's configuration."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingConfig(BaseModel):
    """The training section."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run's folder.")
    output_dir: str = Field("runs", min_length=1, description="Folder of the run folders.")
    steps: int = Field(500_000, ge=1, description="Optimizer updates.")
    global_batch_size: int = Field(2048, ge=1, description="Sequences per update, over all ranks.")
    micro_batch_size: int = Field(8, ge=1, description="Sequences per rank and forward pass.")
    precision: Literal["fp32", "bf16", "bf16_autocast"] = Field(
        "bf16_autocast",
        description="fp32; bf16: bf16 weights with an fp32 master copy; bf16_autocast: fp32 weights, bf16 products "
        "(the paper's).",
    )
    deepspeed_config: str = Field("ds_configs/zero1.json", description="DeepSpeed's own options, a JSON file.")
    activation_checkpointing: bool = Field(False, description="Recompute blocks in the backward pass to save memory.")
    seed: int = Field(0, ge=0, description="Seed of the initial weights and of all randomness in training.")
    log_every: int = Field(10, ge=1, description="Steps between rows of metrics.")
    eval_every: int = Field(1000, ge=1, description="Steps between evaluations; there is always one at the end.")
    eval_examples: int = Field(
        4096, ge=1, description="Held-out sequences in an evaluation; divisible by micro_batch_size x world size."
    )
    save_every: int = Field(1000, ge=1, description="Steps between checkpoints; there is always one at the end.")
    save_in_background: bool = Field(
        True,
        description="Write checkpoints beside the training, from a copy in host memory of what this rank writes; "
        "false: training waits, and no copy is made.",
    )
    keep_checkpoints: int | None = Field(
        None, ge=1, description="Newest checkpoints that are kept; older ones are removed. null: all are kept."
    )
    keep_every: int | None = Field(
        None, ge=1, description="Checkpoints whose step is a multiple of this are kept too; needs keep_checkpoints."
    )
    on_save_error: Literal["stop", "continue"] = Field(
        "stop",
        description="A checkpoint that cannot be written (disk full): end the run, or go on until the next one.",
    )
    timeout_seconds: float = Field(
        1800.0,
        gt=0,
        description="Seconds within which the other ranks end, and name the rank, when one is dead or hangs; also how "
        "long a collective waits. Longer than an evaluation.",
    )
