"""Objectives by name."""

from collections.abc import Callable, Mapping

from data.config import DataConfig
from data.objectives.base import Objective
from data.objectives.prefix_lm import PrefixLm
from data.objectives.span_corruption import SpanCorruption
from data.objectives.text_to_text import TextToText
from data.tokenizer import Tokenizer

# Of text. Tasks (``TextToText``) have no packs to cut.
OBJECTIVES: Mapping[str, Callable[[DataConfig, Tokenizer], Objective]] = {
    "span_corruption": SpanCorruption,
    "prefix_lm": PrefixLm,
}


def make_objective(config: DataConfig, tokenizer: Tokenizer) -> Objective:
    """Return the objective of text that ``config.objective`` names.

    Raises:
        ValueError: the examples need more sentinels than the vocabulary has, or are not of text.
    """
    if config.objective == "tasks":
        raise ValueError(
            "data.objective = tasks makes no examples of plain text: name a model that was trained on text, or set "
            "data.objective=span_corruption"
        )
    return OBJECTIVES[config.objective](config, tokenizer)


def targets_length(config: DataConfig, tokenizer: Tokenizer) -> int:
    """Return the target tokens per example, of tasks too. Raises ValueError, see ``make_objective``."""
    if config.objective == "tasks":
        return TextToText(config, tokenizer).targets_length
    return make_objective(config, tokenizer).targets_length
