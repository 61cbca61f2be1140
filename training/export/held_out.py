"""Held-out examples of one or several texts, as evaluations make them, for what looks at a trained model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig, FilePatterns
from data.sources.open import open_shards
from data.streaming.loader import Batch
from data.streaming.task_validation import task_validation_batches
from data.streaming.validation import DOMAIN, Settings, validation_batches
from data.tokenizer import Tokenizer

OWN = "validation"  # the name of a run's own text without domains
OPTIONS = Settings("--examples", "--batch-size", "", "--data")


@dataclass(frozen=True)
class HeldOut:
    """Held-out examples.

    Attributes:
        domains: names of the texts.
        batches: ``input_ids [B, L]`` and ``labels [B, M]``, int64.
        domain_NB: of each batch, the index in ``domains`` of each example.
    """

    domains: list[str]
    batches: list[Batch]
    domain_NB: list[NDArray[np.int64]]


def held_out_batches(
    config: DataConfig, tokenizer: Tokenizer, texts: Mapping[str, FilePatterns], *, examples: int, batch_size: int
) -> HeldOut:
    """Return the batches of an evaluation on one rank, equally many examples of each text, or of each task.

    The last batch of a task is filled with examples of padding alone.

    Args:
        config: the ``data`` section that makes examples of text.
        tokenizer: the vocabulary.
        texts: files of each text by name, as ``--data`` names them; none: the validation text of ``config``.
        examples: of all texts together, rounded down to whole batches, at least one.
        batch_size: sequences of a batch.

    Raises:
        ValueError: a text is not there, or there are too few examples for a batch or for all texts.
        DataError: it cannot be read.
    """
    if config.objective == "tasks" and not texts:
        limit = max(1, examples // len(config.tasks or config.task_files))
        sizes = {"rank": 0, "world_size": 1, "batch_size": batch_size}
        batches, domains = task_validation_batches(config, tokenizer, limit=limit, **sizes)
        return HeldOut(domains, batches, [batch.pop(DOMAIN) for batch in batches])
    sources = None
    if texts:
        config = config.model_copy(update={"source": "files", "validation_files": dict(texts)})
        named = [replace(text, setting=f"--data {text.name}") for text in config.validation_sources()]
        sources = [open_shards(config, text) for text in named]
    batches = validation_batches(
        config,
        tokenizer,
        rank=0,
        world_size=1,
        batch_size=batch_size,
        num_batches=max(1, examples // batch_size),
        sources=sources,
        settings=OPTIONS,
    )
    domain_NB = [batch.pop(DOMAIN, np.zeros(batch_size, np.int64)) for batch in batches]
    return HeldOut(config.validation_domains() or [OWN], batches, domain_NB)


def name_of(files: str) -> str:
    """Return a name for files without one: ``text/news.txt.gz`` and ``text/news`` give ``news``."""
    return Path(files).name.partition(".")[0].strip("*") or Path(files).parent.name or OWN
