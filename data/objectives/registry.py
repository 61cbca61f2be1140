"""Objectives by name."""

from collections.abc import Callable

from data.config import DataConfig
from data.objectives.base import Objective
from data.objectives.prefix_lm import PrefixLm
from data.objectives.span_corruption import SpanCorruption
from data.tokenizer import Tokenizer

OBJECTIVES: dict[str, Callable[[DataConfig, Tokenizer], Objective]] = {
    "span_corruption": SpanCorruption,
    "prefix_lm": PrefixLm,
}


def make_objective(config: DataConfig, tokenizer: Tokenizer) -> Objective:
    """Return the objective that ``config.objective`` names.

    Raises:
        ValueError: the examples need more sentinels than the vocabulary has.
    """
    return OBJECTIVES[config.objective](config, tokenizer)
