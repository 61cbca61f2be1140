"""Questions with choices (ARC, Winogrande) and adversarial inference (ANLI)."""

from data.sources.retry import DataError
from data.tasks.answers import chosen_text, class_answers
from data.tasks.formats.keyed import keyed_text
from data.tasks.formats.texts import choice_of_text
from data.tasks.metrics.classes import accuracy
from data.tasks.registry.glue import NLI_LABELS
from data.tasks.sources.base import Row
from data.tasks.sources.hub import HubRows
from data.tasks.task import Task

ARC_REVISION = "210d026faf9955653af8916fad021475a3f00453"
WINOGRANDE_REVISION = "01e74176c63542e6b0bcb004dcdea22d94fb67b5"
ANLI_REVISION = "8e4813d81f46d313dac7892e1c28076917cfcdf9"


def _arc_choices(row: Row) -> list[str]:
    return list(row["choices"]["text"])


def _arc_answer(row: Row) -> int | None:
    """Number of the right choice, whose labels are letters or, in some rows, digits."""
    return _place(row["answerKey"], list(row["choices"]["label"]))


def _winogrande_choices(row: Row) -> list[str]:
    return [row["option1"], row["option2"]]


def _winogrande_answer(row: Row) -> int | None:
    return _place(row["answer"], ["1", "2"])


def _place(answer: str, labels: list[str]) -> int | None:
    """Place of an answer among labels; None without an answer. Raises DataError for an answer that is no label."""
    if answer and answer not in labels:
        raise DataError(f"a row has the answer {answer!r}: give it one of {', '.join(labels)}, or none")
    return labels.index(answer) if answer else None


def _arc(name: str, config: str) -> Task:
    return Task(
        name,
        HubRows("allenai/ai2_arc", config, ARC_REVISION, "CC BY-SA 4.0"),
        choice_of_text(name, "question", _arc_choices, _arc_answer, "choices", "answerKey"),
        chosen_text(_arc_choices, _arc_answer),
        (accuracy,),
    )


def _anli(number: int) -> Task:
    splits = {"train": f"train_r{number}", "validation": f"dev_r{number}", "test": f"test_r{number}"}
    return Task(
        f"anli_r{number}",
        HubRows("facebook/anli", None, ANLI_REVISION, "CC BY-NC 4.0", splits),
        keyed_text("anli", ("hypothesis", "premise"), NLI_LABELS),
        class_answers(NLI_LABELS),
        (accuracy,),
    )


REASONING = (
    _arc("arc_easy", "ARC-Easy"),
    _arc("arc_challenge", "ARC-Challenge"),
    Task(
        "winogrande",
        HubRows("allenai/winogrande", "winogrande_xl", WINOGRANDE_REVISION, "CC BY 4.0"),
        choice_of_text(
            "winogrande", "sentence", _winogrande_choices, _winogrande_answer, "option1", "option2", "answer"
        ),
        chosen_text(_winogrande_choices, _winogrande_answer),
        (accuracy,),
    ),
    _anli(1),
    _anli(2),
    _anli(3),
)
