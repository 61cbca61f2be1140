"""The `data` section of a run config: where the text comes from and how it becomes examples."""

import re
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

C4 = "allenai/c4"
C4_REVISION = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"
FILE_ENDINGS = (
    ".json.gz, .jsonl.gz, .json, .jsonl (one JSON object per line), .parquet, .txt, .txt.gz (one document per line)"
)


class SourceKeys(BaseModel):
    """The keys that say what kind of source a text has, the same for a single source and in a mixture."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    source: Literal["files", "hub"] = Field(
        default="files", description="'files' (or 'local'): files and URLs; 'hub': streams hub_dataset"
    )
    text_column: str = Field(default="text", min_length=1, description="JSON key or Parquet column that holds the text")
    hub_dataset: str = Field(
        default=C4, min_length=1, description="Hugging Face Hub dataset with a text column, when source is 'hub'"
    )
    hub_config: str | None = Field(
        default="en",
        min_length=1,
        description="configuration (subset) of hub_dataset, such as en, multilingual or de of C4; null: the only one",
    )
    hub_revision: str = Field(
        default=C4_REVISION,
        description="git commit of hub_dataset, 40 digits; pinned, so that a resumed run reads the same rows",
    )

    @field_validator("source", mode="before")
    @classmethod
    def _older_name(cls, value: Any) -> Any:
        return "files" if value == "local" else value

    @field_validator("hub_revision")
    @classmethod
    def _is_commit(cls, value: str) -> str:
        if not re.fullmatch("[0-9a-f]{40}", value):
            raise ValueError(f"hub_revision = {value!r} can change: set the 40 digits of a commit")
        return value

    @model_validator(mode="after")
    def _own_revision(self) -> Self:
        if self.source == "hub" and self.hub_dataset != C4 and self.hub_revision == C4_REVISION:
            raise ValueError(
                f"hub_dataset = {self.hub_dataset!r} needs its own hub_revision, not the default, which is a commit of "
                f"{C4}: set the 40 digits of a commit of {self.hub_dataset}"
            )
        return self


@dataclass(frozen=True)
class TextSource:
    """One source of text, resolved: `setting` is the key that chose it, for error messages."""

    name: str
    weight: float
    setting: str
    files: str
    keys: SourceKeys
    split: str


class MixtureSource(SourceKeys):
    """One source of a mixture."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the source in metrics and messages, unique"
    )
    weight: float | int = Field(gt=0, description="share of the raw tokens; the weights need not add up to 1")
    files: str = Field(default="", description="shards, as train_files, when source is 'files'")
    hub_split: str = Field(default="train", min_length=1, description="split of hub_dataset to read")

    @model_validator(mode="after")
    def _files_of_files(self) -> Self:
        if self.source == "files" and not self.files:
            raise ValueError(f"source {self.name!r} has no files: set files to a pattern or URL, or source to hub")
        return self


class DataConfig(SourceKeys):
    """Where the text comes from and how it becomes examples. Unknown keys are refused."""

    train_files: str = Field(
        default="runs/data/wikipedia/train/*.json.gz",
        min_length=1,
        description="training shards when source is 'files': a glob, or a URL (http, https, s3, gs, hf, …) with "
        f"{{00000..01023}} for a range of numbers; formats by file ending: {FILE_ENDINGS}",
    )
    validation_files: str = Field(
        default="runs/data/wikipedia/validation/*.json.gz",
        min_length=1,
        description="validation shards, likewise, read in file order; from the Hub, the split 'validation' is read",
    )
    mixture: list[MixtureSource] = Field(
        default=[],
        description="several training sources in place of train_files, each with name, weight and source keys; "
        "validation is still read as source and validation_files say",
    )
    vocabulary: str = Field(
        default="runs/data/wikipedia/vocabulary",
        min_length=1,
        description="folder that holds spiece.model (SentencePiece)",
    )
    objective: Literal["span_corruption", "prefix_lm"] = Field(
        default="span_corruption",
        description="span_corruption: T5's denoising; prefix_lm: the text is split at a uniform place, inputs are what "
        "comes before it, targets the rest",
    )
    inputs_length: int = Field(
        default=512,
        ge=16,
        description="encoder tokens per example, sentinels and EOS included; fixes the target length too",
    )
    noise_density: float = Field(
        default=0.15, gt=0.0, lt=1.0, description="span_corruption: fraction of the raw tokens that is masked"
    )
    mean_noise_span_length: float = Field(
        default=3.0, ge=1.0, description="span_corruption: mean length of a masked span, in tokens"
    )
    documents_per_pack: int = Field(
        default=512, ge=1, description="documents concatenated before the tokens are cut into examples"
    )
    shuffle_buffer: int = Field(
        default=0,
        ge=0,
        description="documents that a stream reads and shuffles together, a multiple of documents_per_pack; 0: the "
        "order of the files. The shards of a stream are always shuffled",
    )
    num_streams: int = Field(
        default=64,
        ge=1,
        description="logical streams the shards are dealt to; a multiple of the number of ranks, at most the number "
        "of shards. Fixes the order of the data, whatever the number of ranks and workers",
    )
    seed: int = Field(
        default=0, ge=0, lt=1 << 32, description="seed of the order of shards and documents and of the masks"
    )
    num_workers: int = Field(
        default=1,
        ge=0,
        description="processes per rank that read, tokenize and corrupt ahead of the training; 0: the training process "
        "does it. The batches are the same",
    )
    prefetch_batches: int = Field(default=8, ge=1, description="batches that a worker may be ahead")
    max_document_length: int = Field(
        default=100_000,
        ge=1000,
        description="characters; longer documents are tokenized in parts of at most this, cut at white space",
    )
    max_bad_fraction: float = Field(
        default=0.01,
        ge=0.0,
        le=1.0,
        description="fraction of bad rows (malformed, empty, without text, …; blank lines are none) in a stream, of at "
        "least 1,000 rows, above which the run stops; below, they are counted and skipped",
    )
    retries: int = Field(
        default=8, ge=0, description="attempts to go on after a failure of a remote source before the run stops"
    )
    remote_block_bytes: int = Field(
        default=4 << 20, ge=1024, description="bytes per request to a remote file; each stream holds one such block"
    )
    retry_seconds: float | int = Field(
        default=1.0, ge=0, description="wait before the first such attempt; doubles, with jitter, to 60 s at most"
    )

    @field_validator("mixture")
    @classmethod
    def _names_are_unique(cls, mixture: list[MixtureSource]) -> list[MixtureSource]:
        names = [source.name for source in mixture]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are named {twice[0]!r}: give each its own name")
        return mixture

    @model_validator(mode="after")
    def _whole_packs(self) -> Self:
        if self.shuffle_buffer % self.documents_per_pack:
            above = -(-self.shuffle_buffer // self.documents_per_pack) * self.documents_per_pack
            raise ValueError(
                f"data.shuffle_buffer = {self.shuffle_buffer} is no multiple of data.documents_per_pack = "
                f"{self.documents_per_pack}: set data.shuffle_buffer={above}"
            )
        return self

    def train_sources(self) -> list[TextSource]:
        """The sources of the training text: one, or those of the mixture."""
        if not self.mixture:
            setting = "data.hub_dataset" if self.source == "hub" else "data.train_files"
            return [TextSource("train", 1.0, setting, self.train_files, self, "train")]
        return [
            TextSource(
                item.name,
                float(item.weight),
                f"data.mixture[{i}].{'hub_dataset' if item.source == 'hub' else 'files'}",
                item.files,
                item,
                item.hub_split,
            )
            for i, item in enumerate(self.mixture)
        ]

    def validation_source(self) -> TextSource:
        """The source of the validation text."""
        setting = "data.hub_dataset" if self.source == "hub" else "data.validation_files"
        return TextSource("validation", 1.0, setting, self.validation_files, self, "validation")
