"""Says what a finished run gave and where it is: ``python -m training.report runs/tiny``."""

import json
import sys
from pathlib import Path


def describe(run_dir: Path) -> str:
    """A few lines for a person, from ``summary.json``. Raises OSError when there is none."""
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    gain = summary["unigram_cross_entropy"] - summary["validation_cross_entropy"]
    latest = (run_dir / "checkpoints" / "latest").read_text(encoding="utf-8").strip()
    return "\n".join(
        (
            "",
            f"Trained {summary['steps']} steps on {summary['tokens']:,} tokens with {summary['world_size']} ranks, "
            f"expert parallel size {summary['expert_parallel_size']}, in {summary['wall_seconds']:.0f} s.",
            f"Validation cross-entropy {summary['validation_cross_entropy']:.3f} nats per token, {gain:.3f} below the "
            f"unigram baseline ({summary['unigram_cross_entropy']:.3f}).",
            f"  run         {run_dir}/  (config.yaml, metrics.jsonl, summary.json)",
            f"  checkpoint  {run_dir}/checkpoints/{latest}/",
            f"  curves      .venv/bin/tensorboard --logdir {run_dir.parent}",
            f"  go on       deepspeed --num_gpus {summary['world_size']} train.py --config {run_dir}/config.yaml "
            f"--resume training.steps={2 * summary['steps']}",
        )
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m training.report RUN_FOLDER")
    try:
        print(describe(Path(sys.argv[1])))
    except OSError as error:
        sys.exit(f"error: {sys.argv[1]} holds no finished run: {error}")
