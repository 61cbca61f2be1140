"""The tasks as a Markdown table, for ``python -m data.tasks --list`` and docs/tasks.md."""

from data.tasks.registry.all import TASKS
from data.tasks.task import Task

MOST_LABELS = 4  # that the table spells out


def markdown_table() -> str:
    """Return a row per task: name, source, splits, format, targets, baselines."""
    lines = ["| task | rows | splits | inputs | targets |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*lines, *map(_line, TASKS.values())])


def _line(task: Task) -> str:
    cells = (task.name, task.source.origin, ", ".join(task.splits), f"`{task.format.pattern}`", _targets(task))
    return f"| {' | '.join(cells)} |"


def _targets(task: Task) -> str:
    if task.labels is None:
        return "a text of the row" if task.answers.choices is None else "the text of the right choice"
    if len(task.labels) > MOST_LABELS:
        return f"one of {len(task.labels)} labels"
    return ", ".join(f"`{label}`" for label in task.labels)
