"""GLUE (Wang et al. 2018), in T5's formats. ``sst2`` is the task that trains on a package's rows."""

from data.tasks.answers import class_answers, similarity_answers
from data.tasks.formats.keyed import keyed_text, similarity
from data.tasks.metrics.classes import accuracy, correlations, f1, matthews
from data.tasks.registry.super_glue import RTE_LABELS
from data.tasks.sources.hub import TRAIN_VALIDATION_TEST, HubRows
from data.tasks.task import Metric, Task

SENTENCES = ("sentence1", "sentence2")
SST2_LABELS = ("negative", "positive")
NLI_LABELS = ("entailment", "neutral", "contradiction")
MNLI_SPLITS = {"train": "train", "validation": "validation_matched", "test": "test_matched"}
MNLI_MISMATCHED_SPLITS = {"validation": "validation_mismatched", "test": "test_mismatched"}


def glue_rows(config: str, splits: dict[str, str] = TRAIN_VALIDATION_TEST) -> HubRows:
    """Return the rows of a task of GLUE on the Hub."""
    return HubRows(
        "nyu-mll/glue", config, "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c", "other: the terms of each task's data set",
        splits,
    )  # fmt: skip


def _classes(name: str, rows: HubRows, prefix: str, columns: tuple[str, ...], labels: tuple[str, ...],
             *metrics: Metric) -> Task:  # fmt: skip
    return Task(name, rows, keyed_text(prefix, columns, labels), class_answers(labels), metrics)


GLUE = (
    _classes("cola", glue_rows("cola"), "cola", ("sentence",), ("unacceptable", "acceptable"), matthews),
    _classes("glue_sst2", glue_rows("sst2"), "sst2", ("sentence",), SST2_LABELS, accuracy),
    _classes("mrpc", glue_rows("mrpc"), "mrpc", SENTENCES, ("not_equivalent", "equivalent"), f1, accuracy),
    Task("stsb", glue_rows("stsb"), similarity(), similarity_answers(), (correlations,)),
    _classes(
        "qqp", glue_rows("qqp"), "qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), f1, accuracy
    ),
    _classes("mnli", glue_rows("mnli", MNLI_SPLITS), "mnli", ("hypothesis", "premise"), NLI_LABELS, accuracy),
    _classes(
        "mnli_mismatched", glue_rows("mnli", MNLI_MISMATCHED_SPLITS), "mnli", ("hypothesis", "premise"), NLI_LABELS,
        accuracy,
    ),
    _classes("qnli", glue_rows("qnli"), "qnli", ("question", "sentence"), RTE_LABELS, accuracy),
    _classes("glue_rte", glue_rows("rte"), "rte", SENTENCES, RTE_LABELS, accuracy),
    _classes("wnli", glue_rows("wnli"), "wnli", SENTENCES, ("not_entailment", "entailment"), accuracy),
)  # fmt: skip
