"""Prepare a dataset folder: text shards in C4 layout, a validation split, a vocabulary and statistics.

    python -m data.prepare --source wikipedia --vocab-size 1000 --out runs/data/wikipedia
    python -m data.prepare --source c4 --documents 200000 --vocab-size 32000
    python -m data.prepare --source laboratory
    python -m data.prepare --source files --files books/ notes.jsonl --license 'CC0 1.0' --out runs/data/books

Writes OUT/train/part-?????-of-?????.json.gz, OUT/validation/…, OUT/vocabulary/spiece.model, OUT/length_histogram.png
and OUT/dataset.json. Source laboratory writes one folder per domain: OUT/train/DOMAIN/… and OUT/validation/DOMAIN/….
OUT appears when it is complete; a complete dataset of the same options is kept. Work in progress is in .OUT.partial
beside it: after an interruption the same command resumes there. All documents must fit into memory.
"""

from common.exit_codes import end_quietly_on_interrupt

if __name__ == "__main__":
    end_quietly_on_interrupt()  # the imports below take a second

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.arguments import Parser
from common.exit_codes import USER_ERROR
from common.paths import check_can_write, path_argument, path_text_argument
from common.program import run
from data.preparation.build import existing, prepare
from data.preparation.command import training_command
from data.preparation.domains.registry import CONSENTS, DOMAINS, choose_domains
from data.preparation.exclusion import read_hashes
from data.preparation.recipe import (
    DEFAULT_C4_DOCUMENTS,
    DEFAULT_DOMAIN_MEGABYTES,
    DEFAULT_VOCAB_SIZE,
    LABORATORY_VOCAB_SIZE,
    LICENCES,
    Recipe,
)
from data.preparation.suitability import describe_too_little


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line. ``argparse`` reports a mistake in one line and exits with status 2."""
    description = (__doc__ or "").partition("\n")[0]
    parser = Parser(prog="python -m data.prepare", description=description)
    add = parser.add_argument
    add("--source", choices=sorted(LICENCES), default="wikipedia", help="Source of the text (default: wikipedia).")
    add("--out", type=path_argument, help="Dataset folder to write (default: runs/data/SOURCE).")
    add(
        "--files",
        nargs="+",
        metavar="FILE",
        help="Source files: files, folders, globs or URLs, in the form of data.train_files.",
    )
    add("--hub-dataset", help="Source hub: dataset on the Hugging Face Hub.")
    add("--hub-config", help="Source hub: configuration of the dataset, if it has several.")
    add("--hub-revision", help="Source hub: git commit of the dataset, 40 digits.")
    add("--text-column", help="JSON key or column that holds the text (default: text).")
    add("--license", help="License of the text, for dataset.json and the card of an exported model.")
    add(
        "--vocabulary",
        type=path_text_argument,
        help="Folder with a spiece.model to use, e.g. T5's, instead of training one.",
    )
    add(
        "--vocab-size",
        type=int,
        help=f"SentencePiece pieces to train (default: {DEFAULT_VOCAB_SIZE}; source laboratory: "
        f"{LABORATORY_VOCAB_SIZE}). model.vocab_size must be at least 100 more, for the sentinels.",
    )
    add("--shards", type=int, default=64, help="Training files, at least data.num_streams (default: 64).")
    add("--validation-fraction", type=float, default=0.05, help="Fraction of the documents held out (default: 0.05).")
    add(
        "--vocabulary-documents",
        type=int,
        help="Documents that the vocabulary is trained on, evenly from the domains (default: 12 million characters).",
    )
    add(
        "--domains",
        nargs="+",
        metavar="NAME",
        help="Source laboratory: domains of text (default: all that need no --accept-licenses), of "
        f"{', '.join(DOMAINS)}.",
    )
    add(
        "--accept-licenses",
        nargs="+",
        metavar="FAMILY",
        help=f"Source laboratory: licenses to accept, for domains that need it: {', '.join(CONSENTS)}.",
    )
    add(
        "--domain-megabytes",
        type=float,
        help=f"Source laboratory: most text of one domain, in MB (default: {DEFAULT_DOMAIN_MEGABYTES}).",
    )
    add(
        "--exclude",
        type=path_argument,
        metavar="FILE",
        help="File of SHA-256 hashes, one per line, of documents to leave out of the training text (docs/data.md).",
    )
    add("--documents", type=int, help=f"Documents to fetch (default: all; c4: {DEFAULT_C4_DOCUMENTS}).")
    add(
        "--max-bad-fraction",
        type=float,
        default=0.01,
        help="Largest fraction of rows, of at least 1,000, that may hold no text, as data.max_bad_fraction "
        "(default: 0.01).",
    )
    add("--seed", type=int, default=0, help="Seed of the shuffle before the split (default: 0).")
    options = parser.parse_args(arguments)
    mistake = find_mistake(options)
    if mistake is not None:
        parser.error(mistake)
    if options.files is not None and len(options.files) == 1:
        (options.files,) = options.files
    if options.source == "laboratory" and options.domain_megabytes is None:
        options.domain_megabytes = DEFAULT_DOMAIN_MEGABYTES
    if options.out is None:
        options.out = Path("runs/data") / options.source
    if options.vocabulary is None and options.vocab_size is None:
        options.vocab_size = LABORATORY_VOCAB_SIZE if options.source == "laboratory" else DEFAULT_VOCAB_SIZE
    return options


def find_mistake(options: argparse.Namespace) -> str | None:
    """Return the first mistake in the options as one line, or None."""
    for option in ("vocab_size", "shards", "documents", "vocabulary_documents"):
        value = getattr(options, option)
        if value is not None and value < 1:
            return f"--{option.replace('_', '-')} {value} must be at least 1"
    if not 0.0 < options.validation_fraction < 1.0:
        return f"--validation-fraction {options.validation_fraction} must be between 0 and 1"
    if not 0.0 <= options.max_bad_fraction <= 1.0:
        return f"--max-bad-fraction {options.max_bad_fraction} must be between 0 and 1"
    if options.seed < 0:
        return f"--seed {options.seed} must be at least 0"
    for option, source in (("files", "files"), ("hub_dataset", "hub"), ("hub_revision", "hub"), ("hub_config", "hub")):
        given = getattr(options, option) is not None
        if given != (options.source == source) and (given or option != "hub_config"):
            verb = "is only for" if given else "is needed with"
            return f"--{option.replace('_', '-')} {verb} --source {source}"
    for option in ("domains", "accept_licenses", "domain_megabytes"):
        if getattr(options, option) is not None and options.source != "laboratory":
            return f"--{option.replace('_', '-')} is only for --source laboratory"
    if options.documents is not None and options.source == "laboratory":
        return "--documents is not for --source laboratory: --domain-megabytes bounds each domain"
    if options.domain_megabytes is not None and not 0.0 < options.domain_megabytes < math.inf:
        return f"--domain-megabytes {options.domain_megabytes} must be above 0"
    if options.vocabulary_documents is not None and options.vocabulary is not None:
        return "--vocabulary and --vocabulary-documents exclude each other: a given vocabulary is not trained"
    if options.text_column is not None and options.source not in ("files", "hub"):
        return "--text-column is only for --source files or hub"
    if options.vocabulary is not None and options.vocab_size is not None:
        return "--vocabulary and --vocab-size exclude each other: a given vocabulary has its own size"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit status: 0, or ``USER_ERROR`` after one line on stderr.
    """
    options = parse_arguments(arguments)
    try:
        check_can_write(options.out, "--out")
        excluded, options.exclude = read_hashes(options.exclude)
        if options.source == "laboratory":
            options.domains = choose_domains(options.domains, options.accept_licenses or [])
        recipe = Recipe(**{field: getattr(options, field) for field in Recipe._fields})
        existing(recipe, options.out)  # another dataset is refused before anything is printed
        print(f"source: {recipe.origin}")
        for name in recipe.domains or []:
            print(f"license of {name}: {DOMAINS[name].licence}")
        if not recipe.domains:
            print(f"license: {recipe.text_license}")
        sys.stdout.flush()
        description, existed = prepare(recipe, options.out, options.max_bad_fraction, excluded)
    except ValidationError as error:
        mistake = error.errors()[0]
        option = {"train_files": "--files"}.get(str(mistake["loc"][0]) if mistake["loc"] else "", "")
        return _report(f"{option} {mistake['msg'].removeprefix('Value error, ')}".strip())
    except (ValueError, OSError) as error:
        return _report(" ".join(str(error).split()))
    print(f"{options.out}: {'already there' if existed else 'created'}: {summarize(description)}")
    too_little = describe_too_little(description)
    if too_little is not None:
        print(f"warning: {too_little}", file=sys.stderr, flush=True)
    if "first_sentinel_id" in description:
        print(
            "train on it, here a small model in one process; model.vocab_size and the data keys fit any config:\n"
            f"{training_command(options.out, description)}"
        )
    return 0


def command() -> int:
    """Run ``main`` as a program: Ctrl-C ends it at once, with one line and exit status 130."""
    try:
        return main()
    except KeyboardInterrupt:
        print("interrupted: the same command continues", file=sys.stderr, flush=True)
        # A vocabulary may still be in training in a thread, which an ordinary exit would pull the interpreter from.
        os._exit(130)


def _report(error: str) -> int:
    print(f"error: {error}", file=sys.stderr)
    return USER_ERROR


def summarize(description: dict[str, Any]) -> str:
    """Summarize the content of ``dataset.json``: one line, and one per domain."""
    train, validation = description["train_documents"], description["validation_documents"]
    items = [f"{train} training and {validation} validation documents"]
    if "train_statistics" in description:
        counts = description["train_statistics"]
        items += [
            f"{counts['tokens']:,} training tokens ({counts['bytes_per_token']:.2f} bytes each on average)",
            f"vocabulary of {description['pieces']:,} pieces, <extra_id_0> has id {description['first_sentinel_id']}",
        ]
        items += [f"skipped {count} {kind}" for kind, count in description["skipped_rows"].items()]
    if description.get("excluded_documents"):
        items.append(f"excluded {description['excluded_documents']} documents (--exclude)")
    lines = [", ".join(items)]
    for name, domain in description.get("domains", {}).items():
        train, held_out = domain["train"], domain["validation"]
        lines.append(
            f"  {name}: {train['bytes'] / 1e6:.2f} MB in {train['documents']:,} documents, {train['tokens']:,} tokens; "
            f"held out {held_out['bytes'] / 1e6:.2f} MB in {held_out['documents']:,}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(command)
