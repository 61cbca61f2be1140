"""The fixed validation examples.

Which chunk is example n depends on the tokens of all text before it, so that no rank can tokenize its own examples
alone: the ranks of a host share what one of them has tokenized.

Shape suffixes: N examples, W words of an example: its inputs, its labels.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.logs import get_logger
from common.once_per_host import Launch
from common.strict_json import to_json
from data.config import DataConfig
from data.objectives.base import Objective
from data.objectives.registry import make_objective
from data.sources.base import ShardSource
from data.sources.open import open_shards
from data.sources.retry import DataError
from data.streaming.corpus import VALIDATION_MASK, Corpus
from data.streaming.identity import EXAMPLES_VERSION
from data.streaming.loader import Batch
from data.streaming.schedule import check_ranks
from data.streaming.stream import ExampleStream
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
    launch: Launch | None = None,
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
        launch: the ranks of this host, one of which tokenizes the text for all; None: this rank does.

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
    global_batch_size, domains = world_size * batch_size, len(corpora)
    wanted = num_batches * global_batch_size

    def read(mine: slice, show_progress: Callable[[], None]) -> _Read:
        streams = [
            ExampleStream(c, tokenizer, objective, 0, config, VALIDATION_MASK, shuffle_buffer=0) for c in corpora
        ]
        return _read(streams, objective, wanted, mine, show_progress)

    mine = slice(rank, wanted, world_size)
    found = None if launch is None else _read_once(launch, _describe(config, corpora, tokenizer, wanted), read, mine)
    if found is None:
        found = read(mine, lambda: None)
    if found.examples < wanted:
        key = corpora[_domain(found.examples, domains)].source.key
        wanted = _fewer(found.examples, wanted, global_batch_size, key, domains, settings)
    if wanted < domains:
        raise ValueError(
            f"{settings.examples} = {wanted} is less than the {domains} domains of {settings.domains}: set "
            f"{settings.examples}={-(-domains // global_batch_size) * global_batch_size}"
        )
    inputs_length = found.words_NW.shape[1] - objective.targets_length
    batches = []
    for first in range(0, wanted // world_size, batch_size):
        words_BW = found.words_NW[first : first + batch_size].astype(np.int64)
        batch = {"input_ids": words_BW[:, :inputs_length], "labels": words_BW[:, inputs_length:]}
        if config.validation_domains():
            numbers = range(first, first + batch_size)
            batch[DOMAIN] = np.array([_domain(rank + number * world_size, domains) for number in numbers], np.int64)
        batches.append({name: np.ascontiguousarray(values) for name, values in batch.items()})
    return batches


class _Read(NamedTuple):
    """Examples that were read."""

    words_NW: NDArray[np.int32]  # those of this rank, or of all
    examples: int  # of all ranks: fewer than wanted where a domain has no more


def _domain(n: int, domains: int) -> int:
    return (n + n // domains) % domains


def _read(
    streams: Sequence[ExampleStream], objective: Objective, wanted: int, mine: slice, show_progress: Callable[[], None]
) -> _Read:
    """Read examples 0 to ``wanted``, and keep those of ``mine``. Raises DataError."""
    kept, rows = range(wanted)[mine], []
    for n in range(wanted):
        show_progress()
        example = streams[_domain(n, len(streams))].next_example()
        if example.epoch > 0:
            break
        if n in kept:
            rows.append(np.concatenate([example.inputs, example.labels]))
    else:
        n = wanted
    return _Read(np.stack(rows) if rows else np.empty((0, objective.targets_length), np.int32), n)


def _describe(config: DataConfig, corpora: Sequence[Corpus], tokenizer: Tokenizer, wanted: int) -> str:
    """All that the examples depend on."""
    shards = [[corpus.source.identify(shard) for shard in range(corpus.source.num_shards)] for corpus in corpora]
    return to_json([EXAMPLES_VERSION, config.model_dump(mode="json"), shards, tokenizer.fingerprint, wanted])


def _read_once(
    launch: Launch, what: str, read: Callable[[slice, Callable[[], None]], _Read], mine: slice
) -> _Read | None:
    """Let one rank of this host read all examples, and return those of ``mine``; None: they could not be shared.

    Raises:
        DataError, ValueError: what the rank that has read them has met with.
    """

    def make(folder: Path, show_progress: Callable[[], None]) -> None:
        try:
            found = read(slice(None), show_progress)
        except ValueError as error:  # the others would meet with the same, one after the other
            _write(folder, {"error": str(error), "of_data": isinstance(error, DataError)})
            return
        np.save(folder / "words.npy", found.words_NW)
        _write(folder, {"examples": found.examples})

    with launch.once(what, make) as folder:
        if folder is None:
            return None
        facts: dict[str, Any] = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        if "error" in facts:
            raise (DataError if facts["of_data"] else ValueError)(facts["error"])
        words_NW = np.load(folder / "words.npy", mmap_mode="r")
        return _Read(np.array(words_NW[mine]), facts["examples"])


def _write(folder: Path, facts: dict[str, Any]) -> None:
    (folder / "facts.json").write_text(to_json(facts), encoding="utf-8")


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
