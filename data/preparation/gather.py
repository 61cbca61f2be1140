"""The documents of a recipe, shuffled and split into training and validation text: in one part, or one per domain."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.archives.download import fetch_archive
from data.preparation.domains.registry import DOMAINS
from data.preparation.domains.units import Unit
from data.preparation.exclusion import text_hash
from data.preparation.fetch import fetch_documents, wikipedia_documents
from data.preparation.progress import show_elapsed
from data.preparation.recipe import Recipe
from data.preparation.suitability import check_rows


class Part(NamedTuple):
    """Text that is sampled and validated on its own.

    Args:
        name: of the domain; empty where all text is one part.
        train, validation: documents in a random order that the recipe fixes.
        excluded: number of training documents excluded by their hashes.
        facts: for ``dataset.json``.
    """

    name: str
    train: list[str]
    validation: list[str]
    excluded: int
    facts: dict[str, Any]


def gather(
    recipe: Recipe, folder: Path, max_bad_fraction: float, excluded: Collection[str]
) -> tuple[list[Part], dict[str, int]]:
    """Fetch, shuffle and split the documents of a recipe.

    Args:
        recipe: what to fetch.
        folder: for what is fetched; existing results are kept.
        max_bad_fraction: see ``check_rows``.
        excluded: hashes (``text_hash``) of documents to leave out of the training text.

    Returns:
        (parts, rows skipped by kind).

    Raises:
        ValueError: the source cannot be read, or the recipe does not suit its documents.
    """
    if recipe.source == "laboratory":
        return [_domain(name, recipe, folder, excluded) for name in recipe.domains or []], {}
    skipped: dict[str, int] = {}
    if recipe.source == "wikipedia":
        documents = wikipedia_documents()[: recipe.documents]
    else:
        documents, skipped = fetch_documents(recipe.data_config(), recipe.text_source(), recipe.document_limit, folder)
    check_rows(recipe, len(documents), skipped, max_bad_fraction)
    units = _shuffled([[text] for text in documents], recipe.seed)
    return [_split("", units, recipe, excluded, {})], skipped


def _domain(name: str, recipe: Recipe, folder: Path, excluded: Collection[str]) -> Part:
    domain = DOMAINS[name]
    archive = domain.archive
    with show_elapsed(f"domain {name}: downloading {archive.megabytes} MB, {archive.origin}"):
        path = fetch_archive(archive, folder)
    units = _shuffled(domain.read(path), recipe.seed)
    if recipe.domain_megabytes is not None:
        units = _first(units, recipe.domain_megabytes * 1e6)
    facts = {"source": archive.origin, "sha256": archive.sha256, "license": domain.licence}
    return _split(name, units, recipe, excluded, facts)


def _shuffled(units: Sequence[Unit], seed: int) -> list[Unit]:
    return [units[i] for i in np.random.default_rng(seed).permutation(len(units))]


def _first(units: list[Unit], most_bytes: float) -> list[Unit]:
    """Return the first units, as long as their UTF-8 text is not larger than ``most_bytes``; at least one."""
    size = 0
    for number, unit in enumerate(units):
        size += size_of(unit)
        if size > most_bytes:
            return units[: max(1, number)]
    return units


def size_of(texts: Sequence[str]) -> int:
    """Return the bytes of texts in UTF-8."""
    return sum(len(text.encode("utf-8")) for text in texts)


def _split(name: str, units: list[Unit], recipe: Recipe, excluded: Collection[str], facts: dict[str, Any]) -> Part:
    """Hold out the first units and leave excluded documents out of the others.

    What is held out does not depend on ``excluded``.
    """
    held_out = max(1, round(len(units) * recipe.validation_fraction))
    validation = [text for unit in units[:held_out] for text in unit]
    rest = units[held_out:]
    if any(len(unit) > 1 for unit in rest):
        # The documents of a unit would stand side by side, at the same place of all shards.
        rest = _shuffled([[text] for unit in rest for text in unit], recipe.seed)
    train = [text for unit in rest for text in unit if not excluded or text_hash(text) not in excluded]
    left_out = sum(map(len, rest)) - len(train)
    if len(train) < recipe.shards:
        where = f" of domain {name}" if name else ""
        more = "raise --domain-megabytes" if name else "give more documents (a line of a .txt file is one)"
        raise ValueError(
            f"--shards {recipe.shards} is more than the {len(train)} training documents{where}: set --shards to at "
            f"most {max(1, len(train))}, or {more}"
        )
    return Part(name, train, validation, left_out, facts)
