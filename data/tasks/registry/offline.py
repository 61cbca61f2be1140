"""Tasks whose training rows packages ship, for machines without the Hub."""

from data.tasks.answers import class_answers, text_answers
from data.tasks.baselines import bag_of_words, first_words, head_word, majority, rule
from data.tasks.formats.keyed import keyed_text, label_text
from data.tasks.formats.texts import prefixed_text, summary
from data.tasks.metrics.classes import accuracy
from data.tasks.metrics.generation import rouge
from data.tasks.metrics.questions import squad
from data.tasks.offline.encyclopedia import TOPICS
from data.tasks.offline.preparations import PREPARATIONS
from data.tasks.registry.glue import SST2_LABELS
from data.tasks.sources.prepared import PreparedRows
from data.tasks.task import Task

LEAD_WORDS = 8  # of a description, about as many as a synopsis has


def _rows(name: str) -> PreparedRows:
    return PreparedRows(PREPARATIONS[name].origin, PREPARATIONS[name].license)


def _classes(name: str, column: str, labels: tuple[str, ...]) -> Task:
    return Task(
        name,
        _rows(name),
        keyed_text(name, (column,), labels),
        class_answers(labels),
        (accuracy,),
        baselines={
            "majority": majority(lambda row: label_text(row, labels)),
            "bag_of_words": bag_of_words(column, labels),
        },
    )


OFFLINE = (
    _classes("sst2", "sentence", SST2_LABELS),
    _classes("wiki_topic", "text", TOPICS),
    Task(
        "hypernym",
        _rows("hypernym"),
        prefixed_text("hypernym gloss:", "gloss", lambda row: row["hypernyms"][0], "hypernyms"),
        text_answers(lambda row: row["hypernyms"]),
        (squad,),
        headline=("em",),
        baselines={
            "majority": majority(lambda row: row["hypernyms"][0]),
            "rule": rule(lambda row: head_word(row["gloss"])),
        },
    ),
    Task(
        "synopsis",
        _rows("synopsis"),
        summary("description", "synopsis"),
        text_answers(lambda row: row["synopsis"]),
        (rouge,),
        headline=("rouge2",),
        baselines={
            "majority": majority(lambda row: row["synopsis"]),
            "rule": rule(lambda row: first_words(row["description"], LEAD_WORDS)),
        },
    ),
)
