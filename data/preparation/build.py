"""Builds a dataset folder in a working folder beside it, resumably, and renames it when complete."""

import gzip
import io
import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.files import sync_folder, wait_for_lock, write_atomically
from common.strict_json import to_json
from data.hugging_face import MODEL_FILE
from data.preparation.gather import Part, gather
from data.preparation.progress import run_interruptibly, show_elapsed, show_progress
from data.preparation.recipe import DEFAULT_VOCAB_SIZE, Recipe, same_value
from data.preparation.statistics import describe_parts
from data.tokenizer import Tokenizer, train_vocabulary

DESCRIPTION_FILE = "dataset.json"
HISTOGRAM_FILE = "length_histogram.png"
FETCHED = frozenset({".gz", ".whl", ".deb"})
# Training a vocabulary takes time in proportion to its text, and more text than this hardly changes a piece.
VOCABULARY_CHARACTERS = 12_000_000


def prepare(
    recipe: Recipe, out: Path, max_bad_fraction: float = 0.01, excluded: Collection[str] = frozenset()
) -> tuple[dict[str, Any], bool]:
    """Build the dataset at ``out`` unless it exists.

    Args:
        recipe: what to build.
        out: dataset folder.
        max_bad_fraction: see ``check_rows``.
        excluded: hashes of documents to leave out of the training text, see ``gather``.

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
        description = build(recipe, work, max_bad_fraction, excluded)
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
    names = recipe.domains or [""]
    complete = all(
        len(list((out / split / name).glob("part-*.json.gz"))) == files
        for name in names
        for split, files in (("train", recipe.shards), ("validation", 1))
    )
    if not complete or not (out / "vocabulary" / MODEL_FILE).is_file():
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
        wait_for_lock(lock, f"preparing {out}")
        for name, wanted in (("fetched", recipe.fetch_fields()), ("dataset", recipe._asdict())):
            fields = work / f"{name}.json"
            if not _holds(fields, wanted):
                shutil.rmtree(work / name, ignore_errors=True)
                write_atomically(fields, to_json(wanted))
        try:
            yield work
        except ValueError:
            if not (recipe.is_remote and any(file.suffix in FETCHED for file in (work / "fetched").glob("*"))):
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)


def _holds(file: Path, wanted: dict[str, Any]) -> bool:
    if not file.exists():
        return False
    found = json.loads(file.read_text(encoding="utf-8"))
    return set(found) == set(wanted) and all(same_value(key, found[key], value) for key, value in wanted.items())


def build(recipe: Recipe, work: Path, max_bad_fraction: float, excluded: Collection[str]) -> dict[str, Any]:
    """Fetch, shuffle and split the documents, write shards and vocabulary, and collect statistics.

    Args:
        recipe: what to build.
        work: working folder: ``fetched`` holds fetched documents, ``dataset`` the dataset. Existing results are kept.
        max_bad_fraction: see ``check_rows``.
        excluded: see ``gather``.

    Returns:
        The content of ``dataset.json``.

    Raises:
        ValueError: the source cannot be read, or the recipe does not suit its documents.
    """
    if recipe.vocabulary is not None:
        Tokenizer(recipe.vocabulary, setting="--vocabulary")  # checked before anything is fetched
    parts, skipped = gather(recipe, work / "fetched", max_bad_fraction, excluded)
    folder = work / "dataset"
    for part in parts:
        for split, texts, shards in (("train", part.train, recipe.shards), ("validation", part.validation, 1)):
            what = f"writing files of {split}" + (f" of {part.name}" if part.name else "")
            write_shards(texts, folder / split / part.name, shards, what)
    tokenizer = make_vocabulary(recipe, vocabulary_sample(parts, recipe), folder / "vocabulary")
    description = describe_parts(parts, tokenizer, folder / HISTOGRAM_FILE)
    description = {
        "origin": recipe.origin,
        "license": recipe.text_license,
        **description,
        "skipped_rows": skipped,
        "pieces": tokenizer.num_pieces,
        "first_sentinel_id": tokenizer.first_sentinel_id,
        "recipe": recipe._asdict(),
    }
    write_atomically(folder / DESCRIPTION_FILE, to_json(description, indent=2) + "\n")
    return description


def write_shards(texts: Sequence[str], folder: Path, shards: int, what: str = "writing files") -> None:
    """Deal texts in turn to gzip JSON-lines files. Existing files are kept; ``what`` is the text of the progress.

    The same texts give the same bytes: the gzip header holds neither time nor name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for shard in show_progress(range(shards), what):
        path = folder / f"part-{shard:05d}-of-{shards:05d}.json.gz"
        if path.exists():
            continue
        lines = (to_json({"text": text}, ensure_ascii=False) + "\n" for text in texts[shard::shards])
        compressed = io.BytesIO()
        with gzip.GzipFile(filename="", fileobj=compressed, mode="wb", mtime=0) as file:
            file.write("".join(lines).encode("utf-8"))
        write_atomically(path, compressed.getvalue())


def vocabulary_sample(parts: Sequence[Part], recipe: Recipe) -> list[str]:
    """Return the first training documents of each part, in their shuffled order, the same share of each.

    A share is ``recipe.vocabulary_documents`` documents over the number of parts or, without that, as many as hold its
    part of ``VOCABULARY_CHARACTERS``.
    """
    sample: list[str] = []
    for number, part in enumerate(parts):
        if recipe.vocabulary_documents is not None:
            share = recipe.vocabulary_documents * (number + 1) // len(parts)
            share -= recipe.vocabulary_documents * number // len(parts)
            sample += part.train[:share]
            continue
        characters = 0
        for text in part.train:
            sample.append(text)
            characters += len(text)
            if characters * len(parts) >= VOCABULARY_CHARACTERS:
                break
    return sample


def make_vocabulary(recipe: Recipe, sample: Sequence[str], folder: Path) -> Tokenizer:
    """Train a vocabulary on a sample, or copy ``recipe.vocabulary`` to ``folder``.

    Raises:
        ValueError: the vocabulary cannot be trained, or the given one is not valid; see ``Tokenizer``.
    """
    if recipe.vocabulary is not None:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(recipe.vocabulary) / MODEL_FILE, folder / MODEL_FILE)
    elif not (folder / MODEL_FILE).exists():
        size = f"{sum(map(len, sample)):,} characters of {len(sample):,} documents"
        with show_elapsed(f"training the vocabulary on {size}"):
            run_interruptibly(lambda: train_vocabulary(sample, recipe.vocab_size or DEFAULT_VOCAB_SIZE, folder))
    return Tokenizer(folder)
