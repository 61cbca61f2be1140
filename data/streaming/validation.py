"""The fixed validation examples."""

import numpy as np

from data.config import DataConfig
from data.objectives.registry import make_objective
from data.sources.base import ShardSource
from data.sources.open import open_shards
from data.streaming.corpus import VALIDATION_MASK, Corpus
from data.streaming.loader import Batch, check_ranks
from data.streaming.stream import ExampleStream
from data.tokenizer import Tokenizer


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
    """This rank's share of the first num_batches * world_size * batch_size examples of the validation split.

    The split is read as one stream in file order with masks fixed by data.seed: every call gives the same examples,
    and all ranks together hold the same set at any world size. Rank r keeps example n when n % world_size == r.

    Args:
        batch_size: examples per rank and batch.
        num_batches: batches per rank, all ranks together training.eval_examples examples.
        source: shards to read in place of those the config names.

    Returns:
        num_batches batches, as of `PretrainingLoader.next_batch`.

    Raises:
        ValueError: the split has too few examples; names the largest training.eval_examples. (DataError: see
            `ExampleStream`.)
    """
    check_ranks(rank, world_size, batch_size)
    corpus = Corpus(source or open_shards(config, config.validation_source()), 1, config.seed, shuffled=False)
    objective = make_objective(config, tokenizer)
    stream = ExampleStream(corpus, tokenizer, objective, 0, config, VALIDATION_MASK, shuffle_buffer=0)
    examples = []
    per_pass = world_size * batch_size
    for n in range(num_batches * per_pass):
        example = stream.next_example()
        if example.epoch > 0:
            largest = n // per_pass * per_pass
            fix = f"set training.eval_examples to at most {largest}" if largest else "use a smaller micro-batch"
            raise ValueError(
                f"training.eval_examples = {num_batches * per_pass}, but {corpus.source.key} has {n} examples: {fix}, "
                "or add validation text"
            )
        if n % world_size == rank:
            examples.append(example)
    return [
        {
            "input_ids": np.stack([example.inputs for example in part]).astype(np.int64),
            "labels": np.stack([example.labels for example in part]).astype(np.int64),
        }
        for part in (examples[i : i + batch_size] for i in range(0, len(examples), batch_size))
    ]
