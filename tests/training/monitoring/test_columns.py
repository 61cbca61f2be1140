"""The columns of metrics.jsonl are declared once and documented from there."""

from typing import Any

from common.project import ROOT
from data.tasks import TASKS
from data.tasks.own import METRICS
from training.monitoring.columns import (
    COLUMNS,
    CROSS_ENTROPY,
    GUARD,
    TRAIN,
    VALIDATION,
    split_of,
    to_markdown,
    undeclared,
)


def test_the_documented_columns_are_the_declared_ones():
    documented = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert documented == to_markdown() + "\n", "run: python -m training.monitoring.columns > docs/metrics.md"


def test_a_column_is_a_key():
    assert {"cross_entropy": 1.0}[CROSS_ENTROPY] == 1.0
    assert split_of({"step": 1}) == TRAIN
    assert len(COLUMNS) == len(set(COLUMNS))


def test_every_metric_of_a_task_has_a_column():
    kinds: list[tuple[Any, Any]] = [
        ([0, 1, 1], [0, 1, 0]),  # classes or numbers
        (["a b", "c"], ["a", "c"]),
        ([["a"], ["b"]], ["a", "c"]),
    ]
    for metric in {metric for task in TASKS.values() for metric in task.metric_functions} | set(METRICS.values()):
        names: set[str] = set()
        for references, predictions in kinds:
            try:
                names |= metric(references, predictions, range(len(references))).keys()
            except (TypeError, ValueError, AttributeError):
                continue
        assert names, metric
        row = {"split": VALIDATION, "score": 0.0, "score/boolq": 0.0} | {f"{name}/boolq": 0.0 for name in names}
        assert undeclared(row) == []


def test_undeclared_keys_are_found():
    row = {
        "step": 1,
        "loss": 2.0,
        "update_rms/experts": 0.1,
        "data_tokens_web-1": 7,
        "router_entropy/encoder_1": 1.5,
        "surprise": 0,
        "rollbacks": 1,
    }
    assert undeclared(row) == ["surprise", "rollbacks"]
    assert undeclared({"split": GUARD, "step": 1, "rollbacks": 1, "loss": 2.0}) == ["loss"]
