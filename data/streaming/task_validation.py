"""The held-out examples of tasks."""

import numpy as np

from data.config import DataConfig
from data.objectives.text_to_text import TextToText
from data.streaming.corpus import VALIDATION_SAMPLE
from data.streaming.loader import Batch
from data.streaming.schedule import check_ranks
from data.streaming.task_examples import open_tasks
from data.streaming.validation import DOMAIN
from data.tokenizer import Tokenizer


def task_validation_batches(
    config: DataConfig, tokenizer: Tokenizer, *, rank: int, world_size: int, batch_size: int, limit: int
) -> tuple[list[Batch], list[str]]:
    """Return this rank's share of the held-out examples of every task, and the names of the tasks.

    All ranks together hold the same examples at any world size: example n of a task belongs to rank n % world_size. The
    last batch of a task is filled with examples of padding alone.

    Args:
        config: the ``data`` section.
        tokenizer: the vocabulary.
        rank, world_size: this rank and the number of data-parallel ranks.
        batch_size: examples per rank and batch.
        limit: examples of each task; of a larger split so many are drawn by ``data.seed``.

    Returns:
        Batches in the form of ``PretrainingLoader.next_batch``, as many on every rank, with ``DOMAIN``, int64 [batch]:
        the index of the example's task among the names.

    Raises:
        DataError: a task has no such split, or it cannot be read.
    """
    check_ranks(rank, world_size, batch_size)
    encoder, batches = TextToText(config, tokenizer), []
    tasks = open_tasks(config, config.validation_split)
    for number, task in enumerate(tasks):
        chosen = np.arange(len(task))
        if len(task) > limit:
            rng = np.random.default_rng((VALIDATION_SAMPLE, config.seed, number))
            chosen = np.sort(rng.permutation(len(task))[:limit])
        for first in range(0, len(chosen), world_size * batch_size):
            mine = chosen[first : first + world_size * batch_size][rank::world_size]
            encoded = [encoder.encode(*task.pairs[int(n)]) for n in mine]
            encoded += [encoder.nothing()] * (batch_size - len(encoded))
            inputs, labels = (np.stack(parts).astype(np.int64) for parts in list(zip(*encoded, strict=True))[:2])
            batches.append({"input_ids": inputs, "labels": labels, DOMAIN: np.full(batch_size, number, np.int64)})
    return batches, [task.name for task in tasks]
