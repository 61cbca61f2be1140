"""Shows progress to the user: a bar with the time left on a terminal, plain lines elsewhere; rank 0 only."""

import sys
import time

from tqdm import tqdm

from common.logs import get_logger
from training.monitoring.columns import (
    CROSS_ENTROPY,
    DROPPED_FRACTION,
    GRAD_NORM,
    LEARNING_RATE,
    LOAD_BALANCE_LOSS,
    ROUTER_Z_LOSS,
    STEP,
    TOKENS_PER_SECOND,
)

logger = get_logger(__name__)


class Progress:
    """Reports steps.

    Args:
        total: steps of the run.
        done: steps already made by the run that is resumed.
        enabled: False on all ranks but 0.
    """

    def __init__(self, total: int, done: int, enabled: bool):
        self.total, self.enabled = total, enabled
        self.start, self.first = time.monotonic(), done
        self.bar = (
            tqdm(total=total, initial=done, unit="step", dynamic_ncols=True)
            if enabled and sys.stderr.isatty()
            else None
        )

    def advance(self) -> None:
        """Count one more step."""
        if self.bar is not None:
            self.bar.update()

    def row(self, row: dict[str, float]) -> None:
        """Show the figures that a user follows, with the time left."""
        if not self.enabled:
            return
        step = int(row[STEP])
        made = max(1, step - self.first)
        left = (time.monotonic() - self.start) / made * (self.total - step)
        text = (
            f"cross-entropy {row[CROSS_ENTROPY]:.4f}  balance {row[LOAD_BALANCE_LOSS]:.3f}  "
            f"z {row[ROUTER_Z_LOSS]:.3f}  dropped {row[DROPPED_FRACTION]:.1%}  lr {row[LEARNING_RATE]:.2e}  "
            f"grad {row[GRAD_NORM]:.3f}  {row[TOKENS_PER_SECOND]:,.0f} tokens/s"
        )
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        else:
            logger.info("step %d/%d  %s  %.1f min left", step, self.total, text, left / 60)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
