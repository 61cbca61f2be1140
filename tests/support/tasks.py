"""Small tasks as files, and their rows."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.tasks.offline.encyclopedia import TOPICS
from tests.support.corpus import sentences

Row = dict[str, Any]


def write_rows(folder: Path, task: str, rows: Mapping[str, Sequence[Row]]) -> None:
    """Write ``FOLDER/TASK/SPLIT.jsonl`` for each split."""
    (folder / task).mkdir(parents=True, exist_ok=True)
    for split, of_split in rows.items():
        (folder / task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_split))


def small_tasks(folder: Path, count: int = 64, splits: Sequence[str] = ("validation",)) -> Path:
    """Write ``count`` rows of tasks of several kinds, in words of ``tests.support.corpus``, the same in all splits."""
    rng = random.Random(0)
    texts = [" ".join(text.split()[: rng.randrange(3, 30)]) for text in sentences(count, seed=11)]
    topics = [rng.randrange(len(TOPICS)) for _ in texts]
    words = [text.split() for text in texts]
    tasks: dict[str, list[Row]] = {
        "sst2": [{"sentence": text, "label": n % 2} for n, text in enumerate(texts)],
        "wiki_topic": [{"text": text, "label": topic} for text, topic in zip(texts, topics, strict=True)],
        "synopsis": [{"description": text, "synopsis": " ".join(text.split()[:3])} for text in texts],
        "arc_easy": [
            {
                "id": str(n),
                "question": text,
                "choices": {"text": of_text[: 3 + n % 3], "label": list("ABCDE"[: len(of_text[: 3 + n % 3])])},
                "answerKey": "ABC"[n % 3],
            }
            for n, (text, of_text) in enumerate(zip(texts, words, strict=True))
        ],
    }
    for task, rows in tasks.items():
        write_rows(folder, task, dict.fromkeys(splits, rows))
    return folder
