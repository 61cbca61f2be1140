"""Builds a dataset folder in a working folder beside it, resumably, and renames it when complete."""

import gzip
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from common.files import acquire_lock, sync_folder, write_atomically
from common.strict_json import to_json
from data.hugging_face import MODEL_FILE
from data.preparation.fetch import fetch_documents, wikipedia_documents
from data.preparation.progress import run_interruptibly, show_elapsed, show_progress
from data.preparation.recipe import DEFAULT_VOCAB_SIZE, Recipe, same_value
from data.preparation.statistics import describe, plot_lengths, token_lengths
from data.preparation.suitability import check_rows
from data.tokenizer import Tokenizer, train_vocabulary

DESCRIPTION_FILE = "dataset.json"
HISTOGRAM_FILE = "length_histogram.png"
# Training a vocabulary takes time in proportion to its text, and more text than this hardly changes a piece.
VOCABULARY_CHARACTERS = 12_000_000


def prepare(recipe: Recipe, out: Path, max_bad_fraction: float = 0.01) -> tuple[dict[str, Any], bool]:
    """Build the dataset at ``out`` unless it exists.

    Args:
        recipe: what to build.
        out: dataset folder.
        max_bad_fraction: see ``check_rows``.

    Returns:
        (content of ``dataset.json``, whether the dataset already existed).

    Raises:
        ValueError, OSError: the dataset could not be built; a later call reuses what was fetched.
    """
    description = existing(recipe, out)
    if description is not None:
        return description, True
    with working_folder(recipe, out) as work:
        # Another process may have built it while this one waited for the lock.
        description = existing(recipe, out)
        if description is not None:
            return description, True
        description = build(recipe, work, max_bad_fraction)
        os.rename(work / "dataset", out)
        sync_folder(out.parent)
    return description, False


def existing(recipe: Recipe, out: Path) -> dict[str, Any] | None:
    """Return the description of a complete dataset of this recipe at ``out``, or None if ``out`` is empty or missing.

    Raises:
        ValueError: ``out`` holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        description: dict[str, Any] = json.loads((out / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        built_with = dict(description["recipe"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--out {out} exists and is not a dataset of this command (no {DESCRIPTION_FILE}): remove it or choose "
            "another --out"
        ) from error
    for key, value in recipe._asdict().items():
        if not same_value(key, built_with.get(key), value):
            option = "--" + key.replace("_", "-")
            raise ValueError(
                f"--out {out} holds a dataset made with {option} {built_with.get(key)}, not {value}: remove it or "
                "choose another --out"
            )
    found = len(list(out.glob("train/part-*.json.gz"))), len(list(out.glob("validation/part-*.json.gz")))
    if found != (recipe.shards, 1) or not (out / "vocabulary" / MODEL_FILE).is_file():
        raise ValueError(f"--out {out} lacks files that {DESCRIPTION_FILE} promises: remove it and run again")
    return description


@contextmanager
def working_folder(recipe: Recipe, out: Path) -> Iterator[Path]:
    """Lock the working folder beside ``out`` for one process at a time; remove it on success.

    Results of an earlier process are kept as far as they belong to the same recipe. A mistake in options or text
    removes it, too, unless it holds text from a network.
    """
    work = out.parent / f".{out.name}.partial"
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        acquire_lock(lock, wait=True)
        for name, wanted in (("fetched", recipe.fetch_fields()), ("dataset", recipe._asdict())):
            fields = work / f"{name}.json"
            if not _holds(fields, wanted):
                shutil.rmtree(work / name, ignore_errors=True)
                write_atomically(fields, to_json(wanted))
        try:
            yield work
        except ValueError:
            if not (recipe.is_remote and any((work / "fetched").glob("*.json.gz"))):
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)


def _holds(file: Path, wanted: dict[str, Any]) -> bool:
    if not file.exists():
        return False
    found = json.loads(file.read_text(encoding="utf-8"))
    return set(found) == set(wanted) and all(same_value(key, found[key], value) for key, value in wanted.items())


def build(recipe: Recipe, work: Path, max_bad_fraction: float) -> dict[str, Any]:
    """Fetch, shuffle and split the documents, write shards and vocabulary, and collect statistics.

    Args:
        recipe: what to build.
        work: working folder: ``fetched`` holds fetched documents, ``dataset`` the dataset. Existing results are kept.
        max_bad_fraction: see ``check_rows``.

    Returns:
        The content of ``dataset.json``.

    Raises:
        ValueError: the source cannot be read, or the recipe does not suit its documents.
    """
    if recipe.vocabulary is not None:
        Tokenizer(recipe.vocabulary, setting="--vocabulary")  # checked before anything is fetched
    skipped: dict[str, int] = {}
    if recipe.source == "wikipedia":
        fetched = wikipedia_documents()[: recipe.documents]
    else:
        limit = recipe.document_limit
        fetched, skipped = fetch_documents(recipe.data_config(), recipe.text_source(), limit, work / "fetched")
    check_rows(recipe, len(fetched), skipped, max_bad_fraction)
    train, validation = _split(fetched, recipe)
    folder = work / "dataset"
    write_shards(train, folder / "train", recipe.shards)
    write_shards(validation, folder / "validation", 1)
    tokenizer = make_vocabulary(recipe, train, folder / "vocabulary")
    lengths, unknown = token_lengths(train, tokenizer)
    held_out, _ = token_lengths(validation, tokenizer)
    plot_lengths(lengths, folder / HISTOGRAM_FILE)
    description = {
        "origin": recipe.origin,
        "license": recipe.text_license,
        "train_documents": len(train),
        "validation_documents": len(validation),
        "validation_tokens": int(held_out.sum()),
        "skipped_rows": skipped,
        "pieces": tokenizer.num_pieces,
        "first_sentinel_id": tokenizer.first_sentinel_id,
        "train_statistics": describe(train, lengths, unknown),
        "recipe": recipe._asdict(),
    }
    write_atomically(folder / DESCRIPTION_FILE, to_json(description, indent=2) + "\n")
    return description


def _split(fetched: list[str], recipe: Recipe) -> tuple[list[str], list[str]]:
    """Return shuffled (training documents, validation documents)."""
    order = np.random.default_rng(recipe.seed).permutation(len(fetched))
    texts = [fetched[i] for i in order]
    num_validation = max(1, round(len(texts) * recipe.validation_fraction))
    validation, train = texts[:num_validation], texts[num_validation:]
    if len(train) < recipe.shards:
        raise ValueError(
            f"--shards {recipe.shards} is more than the {len(train)} training documents: set --shards to at most "
            f"{max(1, len(train))}, or give more documents (a line of a .txt file is one)"
        )
    return train, validation


def write_shards(texts: Sequence[str], folder: Path, shards: int) -> None:
    """Deal texts in turn to gzip JSON-lines files. Existing files are kept.

    The same texts give the same bytes: the gzip header holds neither time nor name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for shard in show_progress(range(shards), f"writing files of {folder.name}"):
        path = folder / f"part-{shard:05d}-of-{shards:05d}.json.gz"
        if path.exists():
            continue
        lines = (to_json({"text": text}, ensure_ascii=False) + "\n" for text in texts[shard::shards])
        compressed = io.BytesIO()
        with gzip.GzipFile(filename="", fileobj=compressed, mode="wb", mtime=0) as file:
            file.write("".join(lines).encode("utf-8"))
        write_atomically(path, compressed.getvalue())


def _sample(texts: Sequence[str]) -> Sequence[str]:
    """Return the first documents, in their shuffled order, up to VOCABULARY_CHARACTERS."""
    characters = 0
    for number, text in enumerate(texts, 1):
        characters += len(text)
        if characters >= VOCABULARY_CHARACTERS:
            return texts[:number]
    return texts


def make_vocabulary(recipe: Recipe, texts: Sequence[str], folder: Path) -> Tokenizer:
    """Train a vocabulary or copy ``recipe.vocabulary`` to ``folder``.

    Raises:
        ValueError: the vocabulary cannot be trained, or the given one is not valid; see ``Tokenizer``.
    """
    if recipe.vocabulary is not None:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(recipe.vocabulary) / MODEL_FILE, folder / MODEL_FILE)
    elif not (folder / MODEL_FILE).exists():
        sample = _sample(texts)
        size = f"{sum(map(len, sample)):,} characters of {len(sample):,} documents"
        with show_elapsed(f"training the vocabulary on {size}"):
            run_interruptibly(lambda: train_vocabulary(sample, recipe.vocab_size or DEFAULT_VOCAB_SIZE, folder))
    return Tokenizer(folder)
