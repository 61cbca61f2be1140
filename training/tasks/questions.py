"""What a trained model is asked: examples of tasks, as texts and as token ids. Imports no torch."""

import difflib
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

import data.tasks
from data.sources.retry import DataError
from data.streaming.corpus import ANSWERED_SAMPLE
from data.tasks.task import Example, Task
from data.tokenizer import Tokenizer
from training.config.errors import ConfigError

CROSS_ENTROPY = "validation"  # the name of a run's own held-out text among the tasks


@dataclass(frozen=True)
class Asked:
    """Rows of a task that a model is asked, each once.

    Attributes:
        task: the task.
        split: of the rows.
        examples: one for each row, in the order of the source.
        is_complete: whether they are all rows of the split.
    """

    task: Task
    split: str
    examples: list[Example]
    is_complete: bool

    @property
    def rows(self) -> list[data.tasks.task.Row]:
        """What was asked, for metrics."""
        return [example.row for example in self.examples]

    @property
    def has_choices(self) -> bool:
        """Whether each answer is one of a few texts, which can be compared by likelihood."""
        return self.task.answers.choices is not None


class Question(NamedTuple):
    """An example as token ids.

    Attributes:
        inputs: of the encoder, EOS included.
        choices: of the decoder, EOS included; empty for a task whose answer is any text.
        is_cut: whether the inputs were longer than the limit.
    """

    inputs: list[int]
    choices: list[list[int]]
    is_cut: bool


def task_names(given: Sequence[str], own: Collection[str] = ()) -> list[str]:
    """Return names of tasks, in order and once each.

    Args:
        given: names of tasks and groups, or several of them with commas between; ``validation`` is the cross-entropy of
            a run's held-out text.
        own: names of the run's own tasks, which come before all others.

    Raises:
        ConfigError: there is no such task or group; the line names those with a similar name.
    """
    words = [word.strip() for text in given for word in text.split(",") if word.strip()]
    if not words:
        raise ConfigError("--tasks names no task: write a task or a group, such as superglue")
    found: list[str] = []
    for word in words:
        try:
            found += [word] if word == CROSS_ENTROPY or word in own else data.tasks.expand([word])
        except DataError as error:
            close = difflib.get_close_matches(word.lower(), [CROSS_ENTROPY, *own], n=1)
            if close:
                raise ConfigError(f"--tasks {word}: did you mean {close[0]}?") from None
            raise ConfigError(f"--tasks {word}: {error}") from None
    return list(dict.fromkeys(found))


def ask(of: str | Task, split: str, limit: int | None, folder: Path | str | None, *, seed: int | None = None) -> Asked:
    """Read the rows of a task.

    Args:
        of: a task, or the name of one.
        split: such as ``validation``.
        limit: most rows; None: all.
        folder: see ``Task.load``.
        seed: of which rows are taken where there are more, see ``draw``; None: the first ones.

    Raises:
        DataError: the rows cannot be had, or have no right answer to compare with; one line.
        ConfigError: a file of the task cannot be read.
    """
    task = data.tasks.get(of) if isinstance(of, str) else of
    try:
        every = data.tasks.examples(task, split, folder)
        examples = list(islice(every, None if seed is not None else limit))
        is_complete = next(every, None) is None
    except OSError as error:
        raise ConfigError(f"task {task.name}: {error.filename} cannot be read: {error.strerror}") from None
    if seed is not None and limit is not None and len(examples) > limit:
        is_complete = False
        examples = [examples[n] for n in draw([task.answers.group(e.row) for e in examples], limit, seed)]
    task.references([example.row for example in examples])
    return Asked(task, split, examples, is_complete)


def draw(groups: Sequence[Hashable], limit: int, seed: int) -> list[int]:
    """Return the numbers of at most ``limit`` rows, drawn by a seed, in their order.

    Rows that are judged together (MultiRC: the answers to a question) are taken together, as far as there is room.

    Args:
        groups: of each row; None: the row is judged by itself.
        limit: at least 1.
        seed: the same rows follow from the same seed.
    """
    members: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault((number,) if group is None else group, []).append(number)
    together = list(members.values())
    chosen: list[int] = []
    for place in np.random.default_rng((ANSWERED_SAMPLE, seed)).permutation(len(together)):
        if len(chosen) + len(together[place]) <= limit:
            chosen += together[place]
    return sorted(chosen) or together[0][:limit]


def encode(asked: Asked, tokenizer: Tokenizer, inputs_length: int, *, sentinels: bool) -> list[Question]:
    """Return the examples as token ids, as fine-tuning encodes them.

    Args:
        asked: the examples.
        tokenizer: of the model.
        inputs_length: most tokens of the encoder; a longer text is cut at its end and still ends with EOS, as T5 does.
        sentinels: whether the first sentinel follows the inputs and precedes the targets.
    """
    sentinel = [tokenizer.first_sentinel_id] if sentinels else []
    room = inputs_length - 1 - len(sentinel)
    known: dict[str, list[int]] = {}  # the choices of most tasks are the same few texts

    def choice(text: str) -> list[int]:
        if text not in known:
            known[text] = [*sentinel, *tokenizer.encode_batch([text])[0].tolist(), tokenizer.eos_id]
        return known[text]

    questions = []
    for example, ids in zip(asked.examples, tokenizer.encode_batch([e.inputs for e in asked.examples]), strict=True):
        texts = asked.task.choices(example.row) or ()
        inputs = [*ids[:room].tolist(), *sentinel, tokenizer.eos_id]
        questions.append(Question(inputs, [choice(text) for text in texts], len(ids) > room))
    return questions


def decode(ids: Sequence[int], tokenizer: Tokenizer, *, sentinels: bool) -> str:
    """Return the text that a model has written.

    Args:
        ids: of the decoder, without its start token; what follows EOS is not counted.
        tokenizer: of the model.
        sentinels: whether a sentinel at the beginning is no part of the answer.
    """
    kept = list(ids)
    if tokenizer.eos_id in kept:
        kept = kept[: kept.index(tokenizer.eos_id)]
    if sentinels and kept[:1] == [tokenizer.first_sentinel_id]:
        kept = kept[1:]
    return tokenizer.decode(kept)
