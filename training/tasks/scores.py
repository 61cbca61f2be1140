"""What answers are worth: metrics beside those of baselines and of the paper, and means over groups of tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import data.tasks
from data.tasks.task import TRAIN, Task
from training.monitoring.columns import SCORE
from training.tasks.paper import MEAN, figures
from training.tasks.questions import Asked

Metrics = dict[str, float]

SCORED_GROUPS = ("superglue",)  # whose mean the paper gives


@dataclass(frozen=True)
class Result:
    """What a model reaches in a task, or in the mean of several.

    Attributes:
        name: of the task or group.
        split: of the rows; empty for a mean over splits.
        examples: number of rows.
        cut: how many inputs were longer than the limit.
        generated: metrics of generated answers; empty if there are none.
        likeliest: metrics of the likeliest choices; empty if there are none.
        score: the mean of the headline metrics of ``generated``, or else of ``likeliest``.
        headline: those metrics; empty: all.
        baselines: metrics by baseline.
        paper: figures by metric and model.
    """

    name: str
    split: str
    examples: int
    cut: int
    generated: Metrics
    likeliest: Metrics
    score: float
    headline: tuple[str, ...] = ()
    baselines: dict[str, Metrics] = field(default_factory=dict)
    paper: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the members by name."""
        return asdict(self)


def result_of(
    asked: Asked, texts: Sequence[str] | None, choices: Sequence[str] | None, cut: int, folder: Path | None
) -> Result:
    """Score the answers to a task.

    Args:
        asked: the rows.
        texts: generated answers, in the order of the rows; None: nothing was generated.
        choices: the likeliest choices, or None.
        cut: inputs that were longer than the limit.
        folder: of prepared tasks.
    """
    task = asked.task
    generated = {} if texts is None else task.metrics(texts, asked.rows)
    likeliest = {} if choices is None else task.metrics(choices, asked.rows)
    metrics = generated or likeliest
    paper = {metric: found for metric in metrics if (found := figures(task.name, metric))}
    score = task.score(metrics)
    baselines = baselines_of(asked, folder)
    return Result(
        task.name, asked.split, len(asked.examples), cut, generated, likeliest, score, task.headline, baselines, paper
    )


def baselines_of(asked: Asked, folder: Path | None) -> dict[str, Metrics]:
    """Return the metrics of the task's baselines on the same rows.

    They are those of ``task.json`` where these are of the same rows; else they are computed, if training rows are on
    this machine.
    """
    task = asked.task
    if not task.baselines:
        return {}
    description = data.tasks.description(task.name, folder)
    if description is not None and asked.is_complete and description.get("baselines_split") == asked.split:
        stored: dict[str, Metrics] = description["baselines"]
        return stored
    if description is None or TRAIN not in description["rows"]:
        return {}
    train = task.load(TRAIN, folder)
    return {name: task.metrics(baseline(train, asked.rows), asked.rows) for name, baseline in task.baselines.items()}


def means(results: Sequence[Result]) -> list[Result]:
    """Return the mean score of each group whose tasks are all there, and that of all tasks if there are several."""
    by_name = {result.name: result for result in results}
    groups = {group: data.tasks.GROUPS[group] for group in SCORED_GROUPS}
    found = [
        _mean(group, [by_name[name] for name in names])
        for group, names in groups.items()
        if all(name in by_name for name in names)
    ]
    if len(results) > 1 and all(set(by_name) != set(names) for names in groups.values()):
        found.append(_mean(f"{len(results)} tasks", results))
    return found


def _mean(name: str, results: Sequence[Result]) -> Result:
    score = sum(result.score for result in results) / len(results)
    shared = set.intersection(*(set(result.baselines) for result in results))
    baselines = {
        baseline: {MEAN: sum(_score(result, result.baselines[baseline]) for result in results) / len(results)}
        for baseline in sorted(shared)
    }
    splits = {result.split for result in results}
    generated = all(result.generated for result in results)
    likeliest = {}
    if all(result.likeliest for result in results):
        likeliest = {MEAN: sum(_score(result, result.likeliest) for result in results) / len(results)}
    return Result(
        name,
        splits.pop() if len(splits) == 1 else "",
        sum(result.examples for result in results),
        sum(result.cut for result in results),
        {MEAN: score} if generated else {},
        likeliest,
        score,
        (),
        baselines,
        {MEAN: found} if (found := figures(name, MEAN)) else {},
    )


def columns(tasks: Sequence[Task], metrics: Mapping[str, Metrics]) -> dict[str, float]:
    """Return the columns of a row of validation: each metric and the score of each task, and the mean of the scores.

    Args:
        tasks: in their order, at least one.
        metrics: of each task, by its name.
    """
    scores = {task.name: task.score(metrics[task.name]) for task in tasks}
    of_tasks = {f"{metric}/{name}": value for name, of in metrics.items() for metric, value in of.items()}
    of_scores = {f"{SCORE}/{name}": value for name, value in scores.items()}
    return {str(SCORE): sum(scores.values()) / len(scores), **of_scores, **of_tasks}


def _score(result: Result, metrics: Mapping[str, float]) -> float:
    return sum(metrics[name] for name in result.headline or metrics) / len(result.headline or metrics)
