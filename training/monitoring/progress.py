"""What a person sees: a bar with the time left on a terminal, plain lines elsewhere; rank 0 only."""

import sys
import time

from tqdm import tqdm


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
        """One more step is made."""
        if self.bar is not None:
            self.bar.update()

    def say(self, text: str) -> None:
        """A line of its own, above the bar if there is one."""
        if self.bar is not None:
            self.bar.write(text)
        elif self.enabled:
            print(text, flush=True)

    def row(self, row: dict[str, float]) -> None:
        """The figures that a person follows, with the time left."""
        if not self.enabled:
            return
        step = int(row["step"])
        made = max(1, step - self.first)
        left = (time.monotonic() - self.start) / made * (self.total - step)
        text = (
            f"cross-entropy {row['cross_entropy']:.4f}  balance {row['load_balance_loss']:.3f}  "
            f"z {row['router_z_loss']:.3f}  dropped {row['dropped_fraction']:.1%}  lr {row['learning_rate']:.2e}  "
            f"grad {row['grad_norm']:.3f}  {row['tokens_per_second']:,.0f} tokens/s"
        )
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        else:
            self.say(f"step {step}/{self.total}  {text}  {left / 60:.1f} min left")

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
