"""All tasks by name, and groups of them."""

import difflib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from data.sources.retry import DataError
from data.tasks.offline.preparations import EVALUATED_OFFLINE, TRAINED_OFFLINE
from data.tasks.registry.generation import GENERATION
from data.tasks.registry.glue import GLUE
from data.tasks.registry.offline import OFFLINE
from data.tasks.registry.questions import QUESTIONS
from data.tasks.registry.reasoning import REASONING
from data.tasks.registry.super_glue import SUPER_GLUE
from data.tasks.task import TRAIN, Example, Task

TASKS: dict[str, Task] = {
    task.name: task for entries in (SUPER_GLUE, REASONING, GENERATION, QUESTIONS, GLUE, OFFLINE) for task in entries
}
GROUPS: dict[str, tuple[str, ...]] = {
    "superglue": tuple(task.name for task in SUPER_GLUE),
    "glue": tuple(task.name for task in GLUE),
    "arc": ("arc_easy", "arc_challenge"),
    "anli": ("anli_r1", "anli_r2", "anli_r3"),
    "summarization": ("xsum", "cnn_dailymail"),
    "closed_book": ("natural_questions", "web_questions", "trivia_qa"),
    "offline": TRAINED_OFFLINE,
    "offline_evaluation": EVALUATED_OFFLINE,
}


def get(name: str) -> Task:
    """Return a task by its name.

    Raises:
        DataError: no such task; the line names those with a similar name.
    """
    if name in GROUPS:
        raise DataError(f"{name} is a group of tasks: {', '.join(GROUPS[name])}: name one of them")
    if name not in TASKS:
        raise DataError(_unknown(name))
    return TASKS[name]


def expand(names: Iterable[str]) -> list[str]:
    """Return names of tasks in order and once each, groups replaced by their tasks.

    Raises:
        DataError: no such task or group.
    """
    found: list[str] = []
    for name in names:
        if name not in TASKS and name not in GROUPS:
            raise DataError(_unknown(name))
        found += GROUPS.get(name, (name,))
    return list(dict.fromkeys(found))


def _unknown(name: str) -> str:
    known = [*TASKS, *GROUPS]
    close = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"use one of {', '.join(known)}"
    return f"there is no task {name!r}: {hint}"


def examples(of: str | Task, split: str, folder: str | Path | None = None) -> Iterator[Example]:
    """Yield the examples of a split of a task.

    In training a row gives an example per answer (ReCoRD) or none (WSC: the wrong referents); in evaluation each row is
    asked once, so that there is one prediction per example and ``metrics`` takes the examples' rows.

    Args:
        of: a task, or its name.
        split: such as ``train`` or ``validation``.
        folder: see ``Task.load``.

    Raises:
        DataError: no such task or split, at the call; rows that do not fit, at the example. One line.
    """
    task = get(of) if isinstance(of, str) else of
    rows = task.load(split, folder)

    def of_rows() -> Iterator[Example]:
        for row in rows:
            found = task.examples_of(row, split)
            yield from found if split == TRAIN else islice(found, 1)

    return of_rows()
