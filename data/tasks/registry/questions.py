"""Questions that are answered with a text: SQuAD, and closed-book questions as Roberts et al. (2020) ask them."""

from data.tasks.answers import squad_answers, squad_v2_answers, text_answers
from data.tasks.formats.reading import question_and_context, question_and_documents
from data.tasks.formats.texts import prefixed_text
from data.tasks.metrics import questions
from data.tasks.sources.hub import HubRows
from data.tasks.task import Task

TRAIN_AND_VALIDATION = {"train": "train", "validation": "validation"}
# WebQuestions has no validation split: as T5's closed-book tasks do, its test questions serve for evaluation.
WEB_QUESTIONS_SPLITS = {"train": "train", "validation": "test"}
TRIVIA_QA_REVISION = "0f7faf33a3908546c6fd5b73a660e0f8ff173c2f"


def _trivia_qa(name: str, config: str) -> Task:
    return Task(
        name,
        HubRows("mandarjoshi/trivia_qa", config, TRIVIA_QA_REVISION, "unknown: see the data set's page"),
        prefixed_text("trivia_qa question:", "question", lambda row: row["answer"]["value"], "answer"),
        text_answers(lambda row: row["answer"]["aliases"]),
        (questions.trivia_qa,),
        headline=("em",),
    )


QUESTIONS = (
    Task(
        "squad",
        HubRows(
            "rajpurkar/squad", None, "7b6d24c440a36b6815f21b70d25016731768db1f", "CC BY-SA 4.0", TRAIN_AND_VALIDATION
        ),
        question_and_context(),
        squad_answers(),
        (questions.squad,),
    ),
    Task(
        "squad_v2",
        HubRows(
            "rajpurkar/squad_v2", None, "3ffb306f725f7d2ce8394bc1873b24868140c412", "CC BY-SA 4.0",
            TRAIN_AND_VALIDATION,
        ),
        question_and_context(),
        squad_v2_answers(),
        (questions.squad_v2,),
    ),
    Task(
        "natural_questions",
        HubRows(
            "google-research-datasets/nq_open", None, "5dd9790a83002ad084ddeb7c420dc716852c6f28", "CC BY-SA 3.0",
            TRAIN_AND_VALIDATION,
        ),
        prefixed_text("nq question:", "question", lambda row: row["answer"][0] if row["answer"] else None, "answer"),
        text_answers(lambda row: row["answer"]),
        (questions.squad,),
        headline=("em",),
    ),
    Task(
        "web_questions",
        HubRows(
            "stanfordnlp/web_questions", None, "0e473cbe21d1e91ec18da343644498be6a3f5454",
            "unknown: see the data set's page", WEB_QUESTIONS_SPLITS,
        ),
        prefixed_text("wq question:", "question", lambda row: row["answers"][0] if row["answers"] else None, "answers"),
        text_answers(lambda row: row["answers"]),
        (questions.squad,),
        headline=("em",),
    ),
    _trivia_qa("trivia_qa", "unfiltered.nocontext"),
    _trivia_qa("trivia_qa_wikipedia", "rc.wikipedia.nocontext"),
    Task(
        "trivia_qa_documents",
        HubRows("mandarjoshi/trivia_qa", "rc", TRIVIA_QA_REVISION, "unknown: see the data set's page"),
        question_and_documents(),
        text_answers(lambda row: row["answer"]["aliases"]),
        (questions.trivia_qa,),
        headline=("em",),
    ),
)  # fmt: skip
