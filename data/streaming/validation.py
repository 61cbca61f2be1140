"""The fixed validation examples."""

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


def validation_batches(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    rank: int,
    world_size: int,
    batch_size: int,
    num_batches: int,
    source: ShardSource | None = None,
) -> list[Batch]:
    """Return this rank's share of the first num_batches * world_size * batch_size examples of the validation split.

    The split is read as one stream in file order with masks fixed by ``data.seed``: every call returns the same
    examples, and all ranks together hold the same set at any world size. Example n belongs to rank n % world_size.

    Args:
        config: the ``data`` section.
        tokenizer: the vocabulary.
        rank, world_size: this rank and the number of data-parallel ranks.
        batch_size: examples per rank and batch.
        num_batches: batches per rank.
        source: shards to read in place of the configured ones.

    Returns:
        Batches in the form of ``PretrainingLoader.next_batch``: num_batches or, with a notice, as many as the split
        fills on every rank.

    Raises:
        ValueError: the split does not fill one batch on every rank.
        DataError: see ``ExampleStream.next_example``.
    """
    check_ranks(rank, world_size, batch_size)
    corpus = Corpus(source or open_shards(config, config.validation_source()), 1, config.seed, shuffled=False)
    objective = make_objective(config, tokenizer)
    stream = ExampleStream(corpus, tokenizer, objective, 0, config, VALIDATION_MASK, shuffle_buffer=0)
    examples = []
    global_batch_size = world_size * batch_size
    wanted = num_batches * global_batch_size
    for n in range(wanted):
        example = stream.next_example()
        if example.epoch > 0:
            used = n // global_batch_size * global_batch_size
            if not used:
                raise ValueError(
                    f"{corpus.source.key} has {n} examples, too few for one batch of {global_batch_size} "
                    "(training.micro_batch_size x ranks): add validation text, or set a smaller "
                    "training.micro_batch_size"
                )
            logger.warning(
                f"training.eval_examples = {wanted}, but {corpus.source.key} has {n} examples: {used} are used"
            )
            wanted = used
            break
        if n % world_size == rank:
            examples.append(example)
    return [_batch(examples[i : i + batch_size]) for i in range(0, wanted // world_size, batch_size)]


def _batch(examples: list[Example]) -> Batch:
    return {
        "input_ids": np.stack([example.inputs for example in examples]).astype(np.int64),
        "labels": np.stack([example.labels for example in examples]).astype(np.int64),
    }
