"""The training section of a run's configuration."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from common.paths import UserPath
from training.config.monitor import MonitorConfig, ProfileConfig

# The families of parameters (``training.engine.parameters.FAMILIES``) that each value of ``trainable`` trains, after
# Zoph et al. 2022, section 4.2. The paper is silent on norms, embedding and head: they are part of ``non_moe`` alone.
TRAINABLE = {
    "all": {"attention", "relative_bias", "feed_forward", "norm", "embedding", "head", "experts", "router"},
    "non_moe": {"attention", "relative_bias", "feed_forward", "norm", "embedding", "head"},
    "dense_feed_forward": {"feed_forward"},
    "moe": {"experts", "router"},
    "attention": {"attention", "relative_bias"},
}


class TrainingConfig(BaseModel):
    """Batch, precision, intervals, checkpoints and failures of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run and of its folder.")
    output_dir: UserPath = Field("runs", min_length=1, description="Folder that holds the run folders.")
    steps: int = Field(500_000, ge=1, description="Optimizer steps of the run.")
    global_batch_size: int = Field(2048, ge=1, description="Sequences per step, over all ranks.")
    micro_batch_size: int = Field(8, ge=1, description="Sequences per rank and forward pass.")
    precision: Literal["fp32", "bf16", "bf16_autocast"] = Field(
        "bf16_autocast",
        description="fp32; bf16: bf16 weights with an fp32 master copy; bf16_autocast: fp32 weights, bf16 matrix "
        "products (as in the paper).",
    )
    deepspeed_config: UserPath = Field(
        "ds_configs/zero1.json",
        description="JSON file of DeepSpeed's own options; looked for in the current folder, beside the config "
        "file and in the project.",
    )
    gradient_reduce_dtype: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Type in which gradients are summed over ranks. bf16 halves the traffic and rounds every summand; "
        "with bf16_autocast it applies to the weights of matrix products, which ZeRO 3 then also gathers in bf16.",
    )
    gradient_accumulate_dtype: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Type in which the gradients of a step's micro-batches are summed; bf16 only with precision bf16, "
        "where it saves 4 bytes per weight and loses small summands.",
    )
    compile: bool = Field(
        False,
        description="Compile the blocks with torch.compile, all but their sparse layers: fewer kernels on GPUs, after "
        "minutes in the first step. Needs a C++ compiler; not under ZeRO 3.",
    )
    deterministic: bool = Field(
        False,
        description="Use only kernels that sum in a fixed order, so that a run repeats bit for bit on GPUs; slower, "
        "and an error where a kernel has no such form.",
    )
    activation_checkpointing: bool = Field(False, description="Recompute blocks in the backward pass to save memory.")
    init_from: UserPath | None = Field(
        None,
        min_length=1,
        description="A run (its newest checkpoint), a checkpoint or an export whose weights a new run begins with, at "
        "any parallel layout. Schedule, text and step begin anew. Keys of model and data.vocabulary that are not set "
        "are those of these weights. null: random weights.",
    )
    init_optimizer: bool = Field(
        False,
        description="Begin with the optimizer's state of init_from, too (Adafactor's slots, AdamW's moments), which "
        "helps where fine-tuning continues with the optimizer of pretraining.",
    )
    trainable: Literal["all", "non_moe", "dense_feed_forward", "moe", "attention"] = Field(
        "all",
        description="Parameters that are trained; the others are frozen and cost neither gradient nor optimizer state. "
        "moe: experts and routers; dense_feed_forward: the dense feed-forwards; attention: its matrices and position "
        "biases; non_moe: all but moe. Norms, embedding and output head are trained by all and non_moe.",
    )
    seed: int = Field(
        0, ge=0, description="Seed of the initial weights and of the randomness of training; data: data.seed."
    )
    log_every: int = Field(10, ge=1, description="Steps between rows of metrics.")
    monitor: MonitorConfig = Field(MonitorConfig(), description="What a run shows of itself; see its keys.")
    profile: ProfileConfig = Field(ProfileConfig(), description="Steps to record with torch.profiler; see its keys.")
    eval_every: int = Field(1000, ge=1, description="Steps between evaluations; the run also ends with one.")
    eval_examples: int = Field(
        4096,
        ge=1,
        description="Held-out sequences per evaluation; a multiple of micro_batch_size x world size. Of tasks: at most "
        "so many of each.",
    )
    eval_answers: int = Field(
        0,
        ge=0,
        description="tasks: examples of each task whose answers are generated at each evaluation and scored by the "
        "task's metrics, at most; of a larger split so many are drawn by data.seed. 0: none.",
    )
    eval_answers_by: Literal["generated", "likeliest"] = Field(
        "generated",
        description="generated: greedily, as the paper; likeliest: where a task has choices, the choice of the largest "
        "log probability.",
    )
    save_every: int = Field(1000, ge=1, description="Steps between checkpoints; the run also ends with one.")
    save_in_background: bool = Field(
        True,
        description="Write checkpoints while training continues, from a copy in host memory of what each rank writes; "
        "false: training waits, and no copy is made.",
    )
    keep_checkpoints: int | None = Field(
        None, ge=1, description="Number of newest checkpoints to keep; older ones are removed. null: keep all."
    )
    keep_every: int | None = Field(
        None, ge=1, description="Also keep checkpoints whose step is a multiple of this; needs keep_checkpoints."
    )
    keep_best: Literal["cross_entropy", "score", "tasks"] | None = Field(
        None,
        description="Also keep the checkpoint of the best evaluation, and write one where save_every has none: of the "
        "lowest validation cross-entropy, of the highest mean score of the tasks, or (tasks) of the highest score of "
        "each task and of their mean. null: none.",
    )
    on_save_error: Literal["stop", "continue"] = Field(
        "stop",
        description="When a checkpoint cannot be written (disk full): end the run, or continue until the next one.",
    )
    timeout_seconds: float = Field(
        1800.0,
        gt=0,
        description="Seconds after which a hung rank is reported and the run ended; also the time-out of collectives. "
        "Must exceed the time of an evaluation.",
    )
    silence_timeout_seconds: float = Field(
        120.0,
        gt=0,
        description="Seconds without a sign of life after which a rank is reported as dead or stopped and the run "
        "ended. A busy rank gives signs of life.",
    )
    start_timeout_seconds: float = Field(
        300.0,
        gt=0,
        description="Seconds that a rank which has started waits for the others, which may import and check slowly.",
    )
