"""The objective that a configuration asks for."""

from data.config import DataConfig
from data.objectives.base import Objective
from data.objectives.denoising import SpanCorruption
from data.objectives.prefix_lm import PrefixLm
from data.tokenizer import Tokenizer


def make_objective(config: DataConfig, tokenizer: Tokenizer) -> Objective:
    """The objective of the config.

    Raises:
        ValueError: the examples need more sentinels than the vocabulary has.
    """
    return PrefixLm(config, tokenizer) if config.objective == "prefix_lm" else SpanCorruption(config, tokenizer)
