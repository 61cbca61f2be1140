"""Held-out examples of one or several texts, as evaluations make them, for what looks at a trained model."""

from collections.abc import Mapping
from pathlib import Path

from data.config import DataConfig, TextSource
from data.sources.open import open_shards
from data.streaming.loader import Batch
from data.streaming.validation import validation_batches
from data.tokenizer import Tokenizer

OWN = "validation"  # the name of the run's own text


def held_out_batches(
    config: DataConfig, tokenizer: Tokenizer, texts: Mapping[str, str], *, examples: int, batch_size: int
) -> list[tuple[str, Batch]]:
    """Return batches of each text, which do not depend on the number of ranks: all ranks get all of them.

    Args:
        config: the ``data`` section that makes examples of text.
        tokenizer: the vocabulary.
        texts: files of each text by name, as ``--data`` takes them; none: the run's own validation text.
        examples: of all texts together, each gives an equal share, in whole batches.
        batch_size: sequences of a batch.

    Returns:
        The text's name and ``input_ids``, ``labels`` of each batch, text by text.

    Raises:
        ValueError: a text is not there or does not fill a batch.
        DataError: it cannot be read.
    """
    own = [config.validation_source()]
    files = config.model_copy(update={"source": "files"})
    sources = [TextSource(name, 1.0, f"--data {name}", given, files, OWN) for name, given in texts.items()] or own
    of_each = max(1, examples // len(sources) // batch_size)
    batches = []
    for source in sources:
        made = validation_batches(
            config,
            tokenizer,
            rank=0,
            world_size=1,
            batch_size=batch_size,
            num_batches=of_each,
            source=open_shards(files if texts else config, source),
        )
        batches += [(source.name, batch) for batch in made]
    return batches


def name_of(files: str) -> str:
    """Return a name for files without one: ``text/news.txt.gz`` and ``text/news`` give ``news``."""
    return Path(files).name.partition(".")[0].strip("*") or Path(files).parent.name or OWN
