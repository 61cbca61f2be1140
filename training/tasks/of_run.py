"""The tasks of a fine-tuning run, and what it asks of them at each evaluation. Imports no torch."""

from functools import partial

from data.config import DataConfig
from data.sources.retry import DataError
from data.streaming.task_examples import TaskExamples, open_tasks
from data.task_config import TaskFiles
from data.tasks import Task
from data.tasks.own import own_task
from data.tasks.task import Pair
from training.config.run import RunConfig
from training.tasks.questions import Asked, ask


def own_tasks(config: DataConfig) -> dict[str, Task]:
    """Return the tasks of ``data.task_files`` by name."""
    return {
        files.name: own_task(files.name, partial(_pairs, config, number, files), files.metrics, files.labels)
        for number, files in enumerate(config.task_files)
    }


def asked_in_training(config: RunConfig) -> list[Asked]:
    """Return what a run is asked at each evaluation: ``training.eval_answers`` examples of each task; none if it is 0.

    Raises:
        DataError, ConfigError: see ``ask``.
    """
    data, limit = config.data, config.training.eval_answers
    if not limit:
        return []
    own = own_tasks(data)
    asked = []
    for name in (task.name for task in open_tasks(data, data.validation_split)):
        try:
            # data.validation_split names a split of data.tasks; own files have one.
            split = "validation" if name in own else data.validation_split
            asked.append(ask(own.get(name, name), split, limit, data.task_folder, seed=data.seed))
        except DataError as error:
            raise DataError(f"training.eval_answers = {limit}: {error}") from None
    return asked


def _pairs(config: DataConfig, number: int, files: TaskFiles, split: str) -> list[Pair]:
    return TaskExamples(files.name, split, config, (number, files)).pairs
