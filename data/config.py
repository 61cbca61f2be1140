"""The ``data`` section of a run config: where the text comes from and how it becomes examples."""

import re
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from common.paths import UserPath
from data.file_names import NAME_PATTERN, DomainFiles, FilePatterns
from data.task_config import TaskKeys

C4 = "allenai/c4"
C4_REVISION = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"
FILE_ENDINGS = (
    ".json.gz, .jsonl.gz, .json, .jsonl (one JSON object per line), .parquet, .txt, .txt.gz (one document per line)"
)
# A fix for missing text or vocabulary, for error messages.
RUN_PREPARE = (
    "run `bash launch/quickstart.sh`, or `python -m data.prepare --vocab-size N` with N + 100 <= model.vocab_size "
    "(N = 1000 for configs/tiny.yaml)"
)


def key_beside(key: str, name: str) -> str:
    """Return another key or option of the section that ``key`` is in, spelled as the user types it.

    ``data.train_files = 'x'`` and ``text_column`` give ``data.text_column``; ``--files`` gives ``--text-column``.
    """
    setting = key.partition(" = ")[0]
    if setting.endswith("]"):  # data.validation_files[code]
        setting = setting.rpartition("[")[0]
    if setting.startswith("--"):
        return f"--{name.replace('_', '-')}"
    section = setting.rpartition(".")[0]
    return f"{section}.{name}" if section else name


class SourceKeys(BaseModel):
    """Keys that select a kind of source, the same for a single source and for each source of a mixture."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    source: Literal["files", "hub"] = Field(
        default="files", description="'files' (or 'local'): files and URLs; 'hub': stream hub_dataset."
    )
    text_column: str = Field(
        default="text", min_length=1, description="JSON key or Parquet column that holds the text."
    )
    hub_dataset: str = Field(
        default=C4, min_length=1, description="Hugging Face Hub dataset with a text column, when source is 'hub'."
    )
    hub_config: str | None = Field(
        default="en",
        min_length=1,
        description="Configuration (subset) of hub_dataset, e.g. en, multilingual or de of C4; null: the only one.",
    )
    hub_revision: str = Field(
        default=C4_REVISION,
        description="Git commit of hub_dataset, 40 digits; pinned so that a resumed run reads the same rows.",
    )

    @field_validator("source", mode="before")
    @classmethod
    def _accept_former_name(cls, value: Any) -> Any:
        return "files" if value == "local" else value

    @field_validator("hub_revision")
    @classmethod
    def _check_revision_is_a_commit(cls, value: str) -> str:
        if not re.fullmatch("[0-9a-f]{40}", value):
            raise ValueError(f"hub_revision = {value!r} can change: set the 40 digits of a commit")
        return value

    @model_validator(mode="after")
    def _check_revision_fits_dataset(self) -> Self:
        if self.source == "hub" and self.hub_dataset != C4 and self.hub_revision == C4_REVISION:
            raise ValueError(
                f"hub_dataset = {self.hub_dataset!r} needs its own hub_revision, the default is a commit of {C4}: set "
                f"the 40 digits of a commit of {self.hub_dataset}"
            )
        return self


@dataclass(frozen=True)
class TextSource:
    """One resolved source of text.

    Args:
        name: name in metrics and messages.
        weight: share of the raw tokens, in any unit.
        setting: config key that selected the source, for error messages.
        files: paths, folders, globs or URLs, when ``keys.source`` is ``files``.
        keys: kind of source and its options.
        split: split to read, when ``keys.source`` is ``hub``.
    """

    name: str
    weight: float
    setting: str
    files: str | list[str]
    keys: SourceKeys
    split: str


class MixtureSource(SourceKeys):
    """One source of a mixture."""

    name: str = Field(pattern=NAME_PATTERN, description="Unique name of the source in metrics and messages.")
    weight: float | int = Field(gt=0, description="Share of the raw tokens; the weights need not add up to 1.")
    files: FilePatterns | None = Field(
        default=None, description="Shards, in the form of train_files, when source is 'files'."
    )
    hub_split: str = Field(default="train", min_length=1, description="Split of hub_dataset to read.")

    @model_validator(mode="after")
    def _check_files_are_set(self) -> Self:
        if self.source == "files" and not self.files:
            raise ValueError(f"source {self.name!r} has no files: set files to a pattern or URL, or source to hub")
        return self


class DataConfig(SourceKeys, TaskKeys):
    """Where the text comes from and how it becomes examples. Unknown keys are refused."""

    train_files: FilePatterns = Field(
        default="runs/data/wikipedia/train/*.json.gz",
        description="Training shards when source is 'files': a file, a folder, a glob or a URL (http, https, s3, gs, "
        "hf, …), or a list of them ([a.jsonl,b/*.parquet]), with {00000..01023} for a range of numbers and {a,b} for a "
        f"choice. Formats by file ending: {FILE_ENDINGS}.",
    )
    validation_files: DomainFiles = Field(
        default="runs/data/wikipedia/validation/*.json.gz",
        description="Validation shards, in the same form, read in file order; or a mapping of domains to such shards "
        "({code: a.jsonl, prose: [b/, c/]}), of which each evaluation takes equally many examples and reports the "
        "cross-entropy of each. With source 'hub' the split 'validation' is read.",
    )
    mixture: list[MixtureSource] = Field(
        default=[],
        description="Several training sources in place of train_files, each with name, weight and source keys. "
        "Validation text is still selected by source and validation_files.",
    )
    vocabulary: UserPath = Field(
        default="runs/data/wikipedia/vocabulary",
        min_length=1,
        description="Folder that holds spiece.model (SentencePiece).",
    )
    objective: Literal["span_corruption", "prefix_lm", "tasks"] = Field(
        default="span_corruption",
        description="span_corruption: T5's denoising; prefix_lm: split the text at a uniformly drawn position into "
        "inputs and targets; tasks: the inputs and targets of text-to-text tasks, for fine-tuning.",
    )
    inputs_length: int = Field(
        default=512,
        ge=16,
        description="Encoder tokens per example, sentinels and EOS included; determines the target length too.",
    )
    noise_density: float = Field(
        default=0.15, gt=0.0, lt=1.0, description="span_corruption: fraction of the raw tokens that is masked."
    )
    mean_noise_span_length: float = Field(
        default=3.0, ge=1.0, description="span_corruption: mean length of a masked span, in tokens."
    )
    documents_per_pack: int = Field(
        default=512, ge=1, description="Documents concatenated into a pack before it is cut into examples."
    )
    shuffle_buffer: int = Field(
        default=0,
        ge=0,
        description="Documents that a stream reads and shuffles together, a multiple of documents_per_pack; 0: file "
        "order. The order of a stream's shards is always shuffled.",
    )
    num_streams: int = Field(
        default=64,
        ge=1,
        description="Logical streams that the shards are dealt to: a multiple of the number of ranks, at most the "
        "number of shards. Determines the order of the data for any number of ranks and workers.",
    )
    seed: int = Field(
        default=0, ge=0, lt=1 << 32, description="Seed of the order of shards and documents and of the masks."
    )
    num_workers: int = Field(
        default=1,
        ge=0,
        description="Worker processes per rank that read, tokenize and corrupt ahead of training; 0: the training "
        "process does it. The batches do not depend on it.",
    )
    prefetch_batches: int = Field(default=8, ge=1, description="Batches that a worker prepares ahead.")
    max_document_length: int = Field(
        default=100_000,
        ge=1000,
        description="Characters; longer documents are tokenized in chunks of at most this length, cut at white space.",
    )
    max_bad_fraction: float = Field(
        default=0.01,
        ge=0.0,
        le=1.0,
        description="Largest fraction of bad rows (malformed, empty, without text, …; blank lines do not count) among "
        "the rows of a stream, at least 1,000. Above it the run stops; below it bad rows are counted and skipped.",
    )
    retries: int = Field(
        default=8, ge=0, description="Consecutive failures of a remote source that are retried before the run stops."
    )
    remote_block_bytes: int = Field(
        default=4 << 20, ge=1024, description="Bytes per request to a remote file; each stream holds one such block."
    )
    retry_seconds: float | int = Field(
        default=1.0, ge=0, description="Wait before the first retry; doubles, with jitter, up to 60 s."
    )

    on_other_text: Literal["stop", "begin", "continue"] = Field(
        default="stop",
        description="When a resumed run finds other text, or other data settings, than its checkpoint was made with: "
        "stop: refuse; begin: read the text from its beginning; continue: read on from the same place, for shards of "
        "another name or size that hold the same rows. Without such a difference it does nothing.",
    )

    @field_validator("mixture")
    @classmethod
    def _check_names_are_unique(cls, mixture: list[MixtureSource]) -> list[MixtureSource]:
        names = [source.name for source in mixture]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"two sources are named {repeated[0]!r}: give each its own name")
        return mixture

    @model_validator(mode="after")
    def _check_tasks(self) -> Self:
        named = "data.tasks" if self.tasks else "data.task_files"
        if self.objective == "tasks" and not (self.tasks or self.task_files):
            raise ValueError(
                "data.objective = tasks without tasks: set data.tasks to names such as [sst2, cb], or data.task_files"
            )
        if self.objective != "tasks" and (self.tasks or self.task_files):
            raise ValueError(
                f"{named} is not used with data.objective = {self.objective}: set data.objective=tasks, or remove it"
            )
        names = [files.name for files in self.task_files]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated:
            raise ValueError(f"data.task_files: two tasks are named {repeated!r}: give each its own name")
        return self

    @model_validator(mode="after")
    def _check_domains_are_files(self) -> Self:
        if self.source == "hub" and isinstance(self.validation_files, dict):
            raise ValueError(
                "data.validation_files names files of domains, but data.source = hub reads the Hub's split: set "
                "data.source=files (a mixture may still take its training text from the Hub)"
            )
        return self

    @model_validator(mode="after")
    def _check_buffer_holds_complete_packs(self) -> Self:
        if self.shuffle_buffer % self.documents_per_pack:
            above = -(-self.shuffle_buffer // self.documents_per_pack) * self.documents_per_pack
            raise ValueError(
                f"data.shuffle_buffer = {self.shuffle_buffer} is not a multiple of data.documents_per_pack = "
                f"{self.documents_per_pack}: set data.shuffle_buffer={above}"
            )
        return self

    def train_sources(self) -> list[TextSource]:
        """Return the sources of the training text: the single one, or those of the mixture."""
        if not self.mixture:
            setting = "data.hub_dataset" if self.source == "hub" else "data.train_files"
            return [TextSource("train", 1.0, setting, self.train_files, self, "train")]
        return [
            TextSource(
                item.name,
                float(item.weight),
                f"data.mixture[{i}].{'hub_dataset' if item.source == 'hub' else 'files'}",
                item.files or "",
                item,
                item.hub_split,
            )
            for i, item in enumerate(self.mixture)
        ]

    def validation_domains(self) -> list[str]:
        """Return the names of the domains whose cross-entropy is reported; none if the validation text is one."""
        return list(self.validation_files) if isinstance(self.validation_files, dict) else []

    def validation_sources(self) -> list[TextSource]:
        """Return the sources of the validation text: the single one, or those of the domains."""
        if isinstance(self.validation_files, dict):
            return [
                TextSource(name, 1.0, f"data.validation_files[{name}]", files, self, "validation")
                for name, files in self.validation_files.items()
            ]
        setting = "data.hub_dataset" if self.source == "hub" else "data.validation_files"
        return [TextSource("validation", 1.0, setting, self.validation_files, self, "validation")]
