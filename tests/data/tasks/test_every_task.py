"""No task without rows whose texts are written out by hand, nor without metrics that are computed in a second way."""

from collections import Counter

from data.tasks import TASKS
from tests.data.tasks import test_class_metrics, test_glue_formats, test_other_formats, test_super_glue_formats


def test_three_rows_of_every_task_are_written_out() -> None:
    cases = [case[0] for case in (*test_super_glue_formats.CASES, *test_other_formats.CASES)]
    rows = Counter(cases) + Counter({name: len(targets) for name, _, _, targets in test_glue_formats.CASES})
    assert {name for name in TASKS if rows[name] < 3} == set()


def test_every_task_has_metrics_and_knows_rows_without_answer() -> None:
    assert all(task.metric_functions for task in TASKS.values())
    kinds = {TASKS[name].answers.reference.__code__ for name, _ in test_class_metrics.NO_REFERENCES}
    assert {name for name, task in TASKS.items() if task.answers.reference.__code__ not in kinds} == {"squad_v2"}
