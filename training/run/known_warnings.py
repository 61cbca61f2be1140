"""Warnings of dependencies that say nothing about a run: silenced by their exact text, whatever else is shown."""

import logging
import warnings

# DeepSpeed calls these functions of torch by their older names.
RENAMED_COLLECTIVES = ("all_gather_into_tensor", "reduce_scatter_tensor")
# What DeepSpeed logs for every optimizer that is not its own; the tests hold ours against the reference.
UNTESTED_OPTIMIZER = "**** You are using ZeRO with an untested optimizer, proceed with caution *****"


def silence_known_warnings() -> None:
    """Drop the warnings above from this process's output; every other warning, and every error, stays."""
    for name in RENAMED_COLLECTIVES:
        warnings.filterwarnings(
            "ignore", rf"`torch\.distributed\.{name}` is deprecated", FutureWarning, r"torch\.distributed\.c10d_logger"
        )
    logging.getLogger("DeepSpeed").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return record.msg != UNTESTED_OPTIMIZER
