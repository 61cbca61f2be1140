"""Prints what a finished run achieved and where its files are: ``python -m training.report runs/tiny``."""

import sys
from pathlib import Path

from common.exit_codes import USER_ERROR
from training.run.folder import RunFolder


def describe(run_dir: Path) -> str:
    """Return a few lines for users, from ``summary.json``. Raises OSError when there is none."""
    folder = RunFolder(run_dir)
    summary = folder.summary()
    if summary is None:
        raise OSError(f"{folder.summary_file} does not exist")
    excess = summary["validation_cross_entropy"] - summary["unigram_cross_entropy"]
    side = "above" if excess > 0 else "below"
    # A resumed run knows the time of its last session only.
    resumed = summary["session_steps"] < summary["steps"]
    session = f"the last {summary['session_steps']} steps in " if resumed else "in "
    return "\n".join(
        (
            "",
            f"Trained {summary['steps']} steps on {summary['tokens']:,} tokens with {summary['world_size']} ranks, "
            f"expert-parallel size {summary['expert_parallel_size']}, {session}{summary['session_seconds']:.0f} s.",
            f"Validation cross-entropy {summary['validation_cross_entropy']:.3f} nats per target, {abs(excess):.3f} "
            f"{side} the unigram baseline ({summary['unigram_cross_entropy']:.3f}).",
            f"  run         {run_dir}/  (config.yaml, metrics.jsonl, summary.json)",
            f"  checkpoint  {folder.checkpoints / (folder.latest() or '')}/",
            "Next, in this folder:",
            "  source .venv/bin/activate",
            f"  tensorboard --logdir {run_dir.parent}",
            f"  deepspeed --num_gpus {summary['world_size']} train.py --config {run_dir}/config.yaml "
            f"--resume training.steps={2 * summary['steps']}",
        )
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print("usage: python -m training.report RUN_FOLDER", file=sys.stderr)
        sys.exit(USER_ERROR)
    try:
        text = describe(Path(sys.argv[1]))
    except OSError as error:
        print(f"error: {sys.argv[1]} holds no finished run: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    print(text)
