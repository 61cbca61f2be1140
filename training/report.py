"""Prints what a finished run achieved and where its files are: ``python -m training.report runs/tiny``."""

import signal
import sys
from pathlib import Path
from typing import Any

from common.exit_codes import USER_ERROR
from common.program import print_anything
from common.text import counted
from training.run.folder import RunFolder

FIGURES = (
    "steps", "tokens", "world_size", "expert_parallel_size", "validation_cross_entropy", "unigram_cross_entropy"
)  # fmt: skip


def describe(run_dir: Path) -> str:
    """Return a few lines for users, from ``summary.json``. Raises ValueError: there is none, or it lacks figures."""
    folder = RunFolder(run_dir)
    summary = folder.summary()
    if summary is None:
        state = "does not exist: the run has not finished" if not folder.summary_file.exists() else "cannot be read"
        raise ValueError(f"{folder.summary_file} {state}")
    missing = [name for name in FIGURES if summary.get(name) is None]
    if missing:
        raise ValueError(
            f"{folder.summary_file} lacks {', '.join(missing)}: another version wrote it, or a diverged run"
        )
    seconds = summary.get("wall_seconds")  # older runs know the time of their last session only
    excess = summary["validation_cross_entropy"] - summary["unigram_cross_entropy"]
    side = "above" if excess > 0 else "below"
    return "\n".join(
        (
            "",
            f"Trained {counted(summary['steps'], 'step')} on {counted(summary['tokens'], 'token')} with "
            f"{counted(summary['world_size'], 'rank')}, expert-parallel size {summary['expert_parallel_size']}"
            f"{'' if seconds is None else f', in {seconds:.0f} s'}.",
            f"Validation cross-entropy {summary['validation_cross_entropy']:.3f} nats per target, {abs(excess):.3f} "
            f"{side} the unigram baseline ({summary['unigram_cross_entropy']:.3f}).",
            f"  run         {run_dir}/  (config.yaml, metrics.jsonl, summary.json)",
            f"  checkpoint  {folder.checkpoints / (folder.latest() or '')}/",
            "Next, in this folder:",
            "  source .venv/bin/activate",
            f"  tensorboard --logdir {run_dir.parent}",
            f"  {_continue_command(folder, summary)}",
        )
    )


def _continue_command(folder: RunFolder, summary: dict[str, Any]) -> str:
    """The command that trains on, as far again as the run has come."""
    config, steps, ranks = folder.saved_config(), summary["steps"], summary["world_size"]
    optimizer = config.get("optimizer", {})
    if optimizer.get("schedule") in ("linear", "cosine"):
        end = optimizer.get("decay_steps") or config.get("training", {}).get("steps", steps)
        if end <= steps:  # the learning rate is at its floor: a new schedule, on the weights
            run_dir = folder.path
            place = f"training.output_dir={run_dir.parent}", f"training.name={run_dir.resolve().name}-continued"
            return folder.train_command(ranks, f"training.init_from={run_dir}", *place)
        return folder.train_command(ranks, "--resume", f"training.steps={end}", f"optimizer.decay_steps={end}")
    return folder.train_command(ranks, "--resume", f"training.steps={2 * steps}")


if __name__ == "__main__":
    print_anything()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` may close the pipe before the last line
    if len(sys.argv) != 2:
        print("usage: python -m training.report RUN_FOLDER", file=sys.stderr)
        sys.exit(USER_ERROR)
    try:
        text = describe(Path(sys.argv[1]))
    except ValueError as error:
        print(f"error: {sys.argv[1]} holds no finished run: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    print(text)
