"""The fixed validation examples."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from common.logs import get_logger
from data.config import DataConfig
from data.objectives.registry import make_objective
from data.sources.base import ShardSource
from data.sources.open import open_shards
from data.streaming.corpus import VALIDATION_MASK, Corpus
from data.streaming.loader import Batch
from data.streaming.schedule import check_ranks
from data.streaming.stream import Example, ExampleStream
from data.tokenizer import Tokenizer

logger = get_logger(__name__)

DOMAIN = "domain"


class Settings(NamedTuple):
    """What the user has set the numbers and the text with, for messages."""

    examples: str = "training.eval_examples"
    batch: str = "training.micro_batch_size"
    ranks: str = " x ranks"
    domains: str = "data.validation_files"


CONFIGURED = Settings()


def validation_batches(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    rank: int,
    world_size: int,
    batch_size: int,
    num_batches: int,
    sources: Sequence[ShardSource] | None = None,
    settings: Settings = CONFIGURED,
) -> list[Batch]:
    """Return this rank's share of the first num_batches * world_size * batch_size examples of the validation split.

    The split, or that of each domain, is read as one stream in file order with masks fixed by ``data.seed``: every call
    returns the same examples, and all ranks together hold the same set at any world size. Example n belongs to rank
    n % world_size. With several domains it comes from domain (n + n // domains) % domains: equally many of each, mixed
    within a batch as in training, and on every rank.

    Args:
        config: the ``data`` section.
        tokenizer: the vocabulary.
        rank, world_size: this rank and the number of data-parallel ranks.
        batch_size: examples per rank and batch.
        num_batches: batches per rank.
        sources: shards to read in place of the configured ones, one item for each of ``config.validation_sources()``.
        settings: for messages.

    Returns:
        Batches in the form of ``PretrainingLoader.next_batch``: num_batches or, with a notice, as many as the split
        fills on every rank. If ``data.validation_files`` names domains, they also hold ``DOMAIN``, int64 [batch]: the
        index in ``config.validation_domains()``.

    Raises:
        ValueError: the split does not fill one batch on every rank, or there are fewer examples than domains.
        DataError: see ``ExampleStream.next_example``.
    """
    check_ranks(rank, world_size, batch_size)
    objective = make_objective(config, tokenizer)
    sources = sources or [open_shards(config, text) for text in config.validation_sources()]
    corpora = [Corpus(shards, 1, config.seed, shuffled=False, number=number) for number, shards in enumerate(sources)]
    streams = [
        ExampleStream(corpus, tokenizer, objective, 0, config, VALIDATION_MASK, shuffle_buffer=0) for corpus in corpora
    ]
    examples: list[Example] = []
    domains: list[int] = []
    global_batch_size = world_size * batch_size
    wanted = num_batches * global_batch_size
    for n in range(wanted):
        domain = (n + n // len(streams)) % len(streams)
        example = streams[domain].next_example()
        if example.epoch > 0:
            wanted = _fewer(n, wanted, global_batch_size, corpora[domain].source.key, len(streams), settings)
            break
        if n % world_size == rank:
            examples.append(example)
            domains.append(domain)
    if wanted < len(streams):
        raise ValueError(
            f"{settings.examples} = {wanted} is less than the {len(streams)} domains of {settings.domains}: set "
            f"{settings.examples}={-(-len(streams) // global_batch_size) * global_batch_size}"
        )
    named = bool(config.validation_domains())
    starts = range(0, wanted // world_size, batch_size)
    return [_batch(examples[i : i + batch_size], domains[i : i + batch_size] if named else None) for i in starts]


def _fewer(found: int, wanted: int, global_batch_size: int, key: str, domains: int, settings: Settings) -> int:
    """Return how many examples are used where one domain has no more, with a notice. Raises ValueError: none."""
    used = found // global_batch_size * global_batch_size
    has = f"{key} has {found // domains} examples"
    if not used:
        raise ValueError(
            f"{has}, too few for one batch of {global_batch_size} ({settings.batch}{settings.ranks}): add validation "
            f"text, or set a smaller {settings.batch}"
        )
    share = f", as many of each of the {domains} domains" if domains > 1 else ""
    logger.warning(f"{settings.examples} = {wanted}, but {has}: {used} are used{share}")
    return used


def _batch(examples: list[Example], domains: list[int] | None) -> Batch:
    batch = {
        "input_ids": np.stack([example.inputs for example in examples]).astype(np.int64),
        "labels": np.stack([example.labels for example in examples]).astype(np.int64),
    }
    return batch if domains is None else batch | {DOMAIN: np.array(domains, np.int64)}
