"""The `data` section of a run config."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class DataConfig(BaseModel):
    """Where the text comes from and how it becomes span-corruption examples. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    source: Literal["local", "hub"] = Field(
        default="local", description="'local' reads train_files and validation_files, 'hub' streams hub_dataset"
    )
    train_files: str = Field(
        default="runs/data/wikipedia/train/*.json.gz",
        min_length=1,
        description="glob of training shards in C4 layout: gzip, one JSON object with a 'text' per line",
    )
    validation_files: str = Field(
        default="runs/data/wikipedia/validation/*.json.gz",
        min_length=1,
        description="glob of validation shards, same layout, read in file order",
    )
    hub_dataset: str = Field(
        default="allenai/c4",
        min_length=1,
        description="Hugging Face Hub dataset with a 'text' column, when source is 'hub'",
    )
    hub_config: str = Field(default="en", min_length=1, description="configuration (subset) of hub_dataset")
    hub_revision: str = Field(
        default="1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
        min_length=1,
        description="git revision of hub_dataset; pinned, so that a resumed run reads the same rows",
    )
    vocabulary: str = Field(
        default="runs/data/wikipedia/vocabulary",
        min_length=1,
        description="folder that holds spiece.model (SentencePiece)",
    )
    inputs_length: int = Field(
        default=512,
        ge=16,
        description="encoder tokens per example, sentinels and EOS included; fixes the target length too",
    )
    noise_density: float = Field(default=0.15, gt=0.0, lt=1.0, description="fraction of the raw tokens that is masked")
    mean_noise_span_length: float = Field(default=3.0, ge=1.0, description="mean length of a masked span, in tokens")
    documents_per_pack: int = Field(
        default=128, ge=1, description="documents concatenated before the tokens are cut into examples"
    )
    num_streams: int = Field(
        default=64,
        ge=1,
        description="logical streams the shards are dealt to; a multiple of the number of ranks, at most the number "
        "of shards. Fixes the order of the data, whatever the number of ranks",
    )
    seed: int = Field(default=0, ge=0, description="seed of the shard order and of the masks")
