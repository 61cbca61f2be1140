"""Shows steps to the user: on a terminal a table below which a bar moves, elsewhere labeled lines; rank 0 only."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from common.logs import get_logger
from training.monitoring.columns import (
    CROSS_ENTROPY,
    DROPPED_FRACTION,
    LOSS,
    MFU,
    PEAK_MEMORY_BYTES,
    PERPLEXITY,
    SCORE,
    STEP,
    TOKENS_PER_SECOND,
)
from training.monitoring.terminal.words import duration, short, size

logger = get_logger(__name__)

WIDTHS = {"loss": 8, "ce": 8, "tok/s": 6, "mfu": 6, "mem": 8, "drop": 6, "eta": 10}
ROWS_PER_HEADER = 30
BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps, {elapsed} gone, {remaining} left"


class Progress:
    """Reports steps.

    Args:
        total: steps of the run.
        enabled: False on all ranks but 0.
    """

    def __init__(self, total: int, enabled: bool):
        self.total, self.enabled = total, enabled
        self.bar: tqdm | None = None
        self.rows = self.made = 0
        self.began = time.monotonic()

    def begin(self, done: int) -> None:
        """Begin to count, after ``done`` steps of earlier sessions."""
        self.began = time.monotonic()
        if self.enabled and sys.stderr.isatty():
            self.bar = tqdm(
                total=self.total, initial=done, dynamic_ncols=True, leave=False, smoothing=0, bar_format=BAR
            )

    def advance(self, step: int) -> None:
        """Count one more step; after a roll-back, ``step`` is lower than before."""
        self.made += 1
        if self.bar is not None:
            self.bar.update(step - self.bar.n)

    def row(self, row: Mapping[str, float]) -> None:
        """Show the figures of a row of training, with the time left."""
        if not self.enabled:
            return
        step = int(row[STEP])
        left = (time.monotonic() - self.began) / max(1, self.made) * (self.total - step)
        figures = {
            "loss": f"{row[LOSS]:.4f}",
            "ce": f"{row[CROSS_ENTROPY]:.4f}",
            "tok/s": short(row[TOKENS_PER_SECOND]),
            "mfu": f"{row[MFU]:.1%}" if MFU in row else "-",
            "mem": size(row[PEAK_MEMORY_BYTES]) if PEAK_MEMORY_BYTES in row else "-",
            "drop": f"{row[DROPPED_FRACTION]:.1%}",
            "eta": duration(left),
        }
        if self.bar is None:
            labeled = (f"{name} {text:<{WIDTHS[name]}}" for name, text in figures.items())
            logger.info("%s", f"step {step}/{self.total}  {' '.join(labeled)}".rstrip())
            return
        width = 2 * len(str(self.total)) + 1
        if self.rows % ROWS_PER_HEADER == 0:
            logger.info("%s", "  ".join((f"{'step':>{width}}", *(f"{name:>{WIDTHS[name]}}" for name in figures))))
        self.rows += 1
        cells = (f"{text:>{WIDTHS[name]}}" for name, text in figures.items())
        logger.info("%s", "  ".join((f"{f'{step}/{self.total}':>{width}}", *cells)))

    def validation(self, step: int, row: Mapping[str, float]) -> None:
        """Show an evaluation."""
        logger.info(
            "step %d  validation cross-entropy %.4f, perplexity %.2f%s%s",
            step,
            row[CROSS_ENTROPY],
            row[PERPLEXITY],
            _parts(row, CROSS_ENTROPY, 4),
            f"; score {row[SCORE]:.1f}{_parts(row, SCORE, 1)}" if SCORE in row else "",
        )

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _parts(row: Mapping[str, float], column: str, digits: int) -> str:
    """Return a column of each domain or task in parentheses; nothing if there are none."""
    parts = [
        f"{key.removeprefix(f'{column}/')} {value:.{digits}f}"
        for key, value in row.items()
        if key.startswith(f"{column}/")
    ]
    return f" ({', '.join(parts)})" if parts else ""
