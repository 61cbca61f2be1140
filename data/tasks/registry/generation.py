"""Summaries (XSum, CNN/Daily Mail) and T5's translations of WMT 2014."""

from data.tasks.answers import text_answers
from data.tasks.formats.texts import summary, translation
from data.tasks.metrics.generation import bleu, rouge
from data.tasks.sources.hub import HubRows
from data.tasks.task import Task

WMT14_REVISION = "b199e406369ec1b7634206d3ded5ba45de2fe696"


def _from_english(name: str, code: str, language: str) -> Task:
    return Task(
        name,
        HubRows("wmt/wmt14", f"{code}-en", WMT14_REVISION, "unknown: see the data set's page"),
        translation("en", code, "English", language),
        text_answers(lambda row: row["translation"][code]),
        (bleu,),
    )


GENERATION = (
    Task(
        "xsum",
        HubRows(
            "EdinburghNLP/xsum", None, "7d4d486c2f8ef850b1a11aead99b894ff3dd7da9", "unknown: see the data set's page"
        ),
        summary("document", "summary"),
        text_answers(lambda row: row["summary"]),
        (rouge,),
        headline=("rouge2",),
    ),
    Task(
        "cnn_dailymail",
        HubRows("abisee/cnn_dailymail", "3.0.0", "96df5e686bee6baa90b8bee7c28b81fa3fa6223d", "Apache-2.0"),
        summary("article", "highlights"),
        text_answers(lambda row: row["highlights"]),
        (rouge,),
        headline=("rouge2",),
    ),
    _from_english("wmt14_ende", "de", "German"),
    _from_english("wmt14_enfr", "fr", "French"),
)
