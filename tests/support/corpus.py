"""A small data set of generated sentences, in the layout of ``data.prepare``."""

import gzip
import json
import random
from pathlib import Path

from data.tokenizer import train_vocabulary

SHARDS = 4
WORDS = [a + b for a in ("ka", "lo", "mi", "tu", "re", "san") for b in ("da", "ne", "po", "ri", "su", "vel")]


def sentences(count: int, seed: int) -> list[str]:
    """Return documents in which each word depends on the last, so that a model can learn something."""
    rng = random.Random(seed)
    documents = []
    for _ in range(count):
        word, words = rng.randrange(len(WORDS)), []
        for _ in range(rng.randrange(20, 60)):
            words.append(WORDS[word])
            word = (word * 5 + rng.randrange(3)) % len(WORDS)
        documents.append(" ".join(words) + ".")
    return documents


def write_corpus(folder: Path) -> dict[str, object]:
    """Write shards and vocabulary, and return the ``data`` section that reads them."""
    for split, count in (("train", 400), ("validation", 60)):
        documents = sentences(count, seed=len(split))
        (folder / split).mkdir(parents=True)
        shards = SHARDS if split == "train" else 1
        for shard in range(shards):
            with gzip.open(folder / split / f"part-{shard:05d}.json.gz", "wt", encoding="utf-8") as file:
                file.writelines(json.dumps({"text": text}) + "\n" for text in documents[shard::shards])
    train_vocabulary(sentences(400, seed=len("train")), 50, folder / "vocabulary")
    return {
        "train_files": str(folder / "train" / "*.json.gz"),
        "validation_files": str(folder / "validation" / "*.json.gz"),
        "vocabulary": str(folder / "vocabulary"),
        "inputs_length": 32,
        "num_streams": SHARDS,
        "documents_per_pack": 8,
    }
