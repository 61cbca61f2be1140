"""The keys of the ``data`` section that only ``data.objective = tasks`` uses."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from common.paths import UserPath
from data.file_names import NAME_PATTERN, FilePatterns


class TaskFiles(BaseModel):
    """Own files of a text-to-text task: rows with two texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=NAME_PATTERN, description="Unique name of the task in metrics and messages.")
    train_files: FilePatterns = Field(description="Files of training examples, in the form of data.train_files.")
    validation_files: FilePatterns | None = Field(default=None, description="Files of held-out examples.")
    inputs_column: str = Field(default="inputs", min_length=1, description="JSON key or Parquet column of the inputs.")
    targets_column: str = Field(default="targets", min_length=1, description="The same of the targets.")
    metrics: list[Literal["accuracy", "squad", "rouge", "bleu"]] = Field(
        default=["accuracy"],
        min_length=1,
        description="Of answers. accuracy: share that equals the target; squad: exact match and F1 of words.",
    )
    labels: list[str] = Field(
        default=[], description="Texts of the classes, where every target is one of a few: they are the choices."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.labels and self.metrics != ["accuracy"]:
            raise ValueError(
                f"metrics = [{', '.join(self.metrics)}] of task {self.name} with labels: classes have an accuracy "
                "alone; leave metrics out, or labels"
            )
        for kind, words in (("labels", self.labels), ("metrics", self.metrics)):
            if len(set(words)) < len(words):
                raise ValueError(f"{kind} of task {self.name} = [{', '.join(words)}]: give each once")
        return self


class TaskKeys(BaseModel):
    """Which tasks, how they are mixed, and how their texts become examples."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    tasks: list[str] = Field(
        default=[], description="tasks: names of tasks, or of groups of them such as superglue, that are mixed."
    )
    task_files: list[TaskFiles] = Field(
        default=[],
        description="tasks: own tasks, each with name, train_files and validation_files, whose rows have inputs and "
        "targets (JSON lines or Parquet); mixed with data.tasks.",
    )
    task_folder: UserPath = Field(
        default="runs/data/tasks", min_length=1, description="Folder of tasks that were prepared on this machine."
    )
    validation_split: str = Field(
        default="validation", min_length=1, description="tasks: split of each of data.tasks that is held out."
    )
    mixing_cap: int | None = Field(
        default=65_536,
        ge=1,
        description="tasks: examples of a task that count at most for its share of the mixture. null: all.",
    )
    mixing_temperature: float | int = Field(
        default=1.0,
        ge=1,
        description="tasks: shares are in proportion to min(examples, mixing_cap) to the power 1 / mixing_temperature.",
    )
    targets_length: int = Field(
        default=62, ge=4, description="tasks: decoder tokens per example, EOS included; longer targets are cut."
    )
    sentinels: bool = Field(
        default=False,
        description="tasks: append <extra_id_0> to the inputs and begin the targets with it, as in pretraining.",
    )
