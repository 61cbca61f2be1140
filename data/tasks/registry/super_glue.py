"""SuperGLUE (Wang et al. 2019), in T5's formats."""

from data.tasks.answers import class_answers, referent_answers, text_answers
from data.tasks.formats.keyed import keyed_text
from data.tasks.formats.pronouns import pronoun_in_asterisks
from data.tasks.formats.reading import query_and_entities
from data.tasks.metrics.classes import accuracy, exact_match_of_groups, f1, mean_f1
from data.tasks.metrics.questions import first_of_group, squad
from data.tasks.sources.hub import HubRows
from data.tasks.task import Task

FALSE_TRUE = ("False", "True")
CB_LABELS = ("entailment", "contradiction", "neutral")
COPA_LABELS = ("choice1", "choice2")
RTE_LABELS = ("entailment", "not_entailment")


def _rows(config: str) -> HubRows:
    return HubRows(
        "aps/super_glue", config, "3de24cf8022e94f4ee4b9d55a6f539891524d646", "other: the terms of each task's data set"
    )


SUPER_GLUE = (
    Task(
        "boolq",
        _rows("boolq"),
        keyed_text("boolq", ("passage", "question"), FALSE_TRUE),
        class_answers(FALSE_TRUE),
        (accuracy,),
    ),
    Task(
        "cb",
        _rows("cb"),
        keyed_text("cb", ("hypothesis", "premise"), CB_LABELS),
        class_answers(CB_LABELS),
        (mean_f1(3), accuracy),
    ),
    Task(
        "copa",
        _rows("copa"),
        keyed_text("copa", ("choice1", "choice2", "premise", "question"), COPA_LABELS),
        class_answers(COPA_LABELS),
        (accuracy,),
    ),
    Task(
        "multirc",
        _rows("multirc"),
        keyed_text("multirc", ("question", "answer", "paragraph"), FALSE_TRUE, marks=False),
        class_answers(FALSE_TRUE, group=lambda row: row["idx"]["question"]),
        (f1, exact_match_of_groups),
    ),
    Task(
        "record",
        _rows("record"),
        query_and_entities(),
        text_answers(lambda row: row["answers"], group=lambda row: (row["idx"]["passage"], row["idx"]["query"])),
        (first_of_group(squad),),
    ),
    Task(
        "rte",
        _rows("rte"),
        keyed_text("rte", ("hypothesis", "premise"), RTE_LABELS),
        class_answers(RTE_LABELS),
        (accuracy,),
    ),
    Task(
        "wic",
        _rows("wic"),
        keyed_text("wic", ("sentence1", "sentence2", "word"), FALSE_TRUE),
        class_answers(FALSE_TRUE),
        (accuracy,),
    ),
    Task("wsc", _rows("wsc.fixed"), pronoun_in_asterisks(), referent_answers(), (accuracy,)),
)
