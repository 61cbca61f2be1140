"""How long inputs and answers may be: as in training, unless the user says otherwise. Imports no torch."""

import json
from pathlib import Path
from typing import NamedTuple

from data.objectives.registry import targets_length
from training.config.errors import ConfigError
from training.export.trained import Found

# Of the paper, for an export that does not say how long its texts were.
INPUTS, ANSWERS = 512, 62
MOST = 10**6  # tokenizers without a limit give a much larger number


class Lengths(NamedTuple):
    """Most tokens of the encoder and of an answer, EOS included."""

    inputs: int
    answers: int


def lengths_of(found: Found, inputs: int | None, answers: int | None, *, sentinels: bool) -> Lengths:
    """Return the lengths that are asked for, or else those of training.

    Args:
        found: the model.
        inputs: asked for with ``--inputs-length``; None: of training.
        answers: asked for with ``--max-length``; None: of training.
        sentinels: whether both have a sentinel.

    Raises:
        ConfigError: one has no room for a text.
    """
    if found.config is not None:
        config = found.config.data
        lengths = Lengths(config.inputs_length, targets_length(config, found.tokenizer))
    else:
        folder = found.source.folder
        lengths = Lengths(
            _kept(folder / "tokenizer_config.json", "model_max_length", INPUTS),
            _kept(folder / "generation_config.json", "max_new_tokens", ANSWERS),
        )
    lengths = Lengths(inputs or lengths.inputs, answers or lengths.answers)
    least = 3 if sentinels else 2
    for option, length in (("--inputs-length", lengths.inputs), ("--max-length", lengths.answers)):
        if length < least:
            raise ConfigError(f"{option} {length} has no room for a text: set at least {least}")
    return lengths


def _kept(file: Path, key: str, default: int) -> int:
    try:
        value = json.loads(file.read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError, AttributeError):
        return default
    return value if isinstance(value, int) and 0 < value < MOST else default
