"""Whether fetched text is fit to train on: rows that had to be skipped, and how much text there is."""

from typing import Any

from data.config import key_beside
from data.preparation.command import MICRO_BATCH, validation_examples
from data.preparation.recipe import Recipe
from data.sources.rows import BadRow, advise

# As for data.max_bad_fraction: a few bad rows of a small text are no sign of a wrong file.
MIN_ROWS = 1000
FEWEST_DOCUMENTS = 64


def check_rows(recipe: Recipe, documents: int, skipped: dict[str, int], max_bad_fraction: float) -> None:
    """Check that the source has text, and few rows that had to be skipped.

    Args:
        recipe: names the source, for messages.
        documents: number of documents fetched.
        skipped: skipped rows by ``BadRow.value``; blank lines do not count as bad.
        max_bad_fraction: largest accepted fraction of bad rows among the rows, at least ``MIN_ROWS``.

    Raises:
        ValueError: no document, or too many bad rows; says how many, of which kinds, and what such rows need.
    """
    source = recipe.text_source()
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in skipped.items())
    advice = advise(skipped, key_beside(source.setting, "text_column"))
    if skipped.get(BadRow.INVALID_UTF8.value):
        advice += " (is each file text?)"
    where = f"{source.setting} = {recipe.origin}"
    if not documents:
        raise ValueError(
            f"{where} has no document: all rows were skipped ({kinds or 'there are none'}): "
            f"{advice or 'name other files'}"
        )
    bad = sum(count for kind, count in skipped.items() if kind != BadRow.BLANK_LINE.value)
    if bad > max_bad_fraction * max(documents + bad, MIN_ROWS):
        raise ValueError(
            f"{where}: {bad:,} of {documents + bad:,} rows were skipped ({kinds}), more than --max-bad-fraction "
            f"{max_bad_fraction}: {advice + '; ' if advice else ''}"
            "repair or leave out such files, or raise --max-bad-fraction"
        )


def describe_too_little(description: dict[str, Any]) -> str | None:
    """Return one line if a dataset is far too small to train on, or None.

    Args:
        description: content of its ``dataset.json``.
    """
    documents, examples = description["train_documents"], validation_examples(description)
    if documents >= FEWEST_DOCUMENTS and (examples is None or examples >= MICRO_BATCH):
        return None
    tokens = description.get("train_statistics", {}).get("tokens")
    size = f"{documents:,} training documents" + (f" of {tokens:,} tokens in all" if tokens is not None else "")
    held_out = "" if examples is None else f" and {examples} complete validation examples (a batch has {MICRO_BATCH})"
    return f"{size}{held_out} are far too little text to train on: give more text"
