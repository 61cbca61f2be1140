"""What a finished run achieved and where its files are, as a few lines."""

import shlex
from pathlib import Path

from common.text import counted
from training.checkpoint.store.best import read_best
from training.run.folder import RunFolder

FIGURES = (
    "steps", "tokens", "world_size", "expert_parallel_size", "validation_cross_entropy", "unigram_cross_entropy"
)  # fmt: skip


def describe(run_dir: Path) -> str:
    """Return a few lines for users, from ``summary.json``. Raises ValueError: there is none, or it lacks figures."""
    folder = RunFolder(run_dir)
    summary = folder.summary()
    if not folder.config_file.is_file():
        raise ValueError(f"{run_dir} is no run folder, such as runs/tiny: it has no {folder.config_file.name}")
    if summary is None:
        state = "does not exist: the run has not finished" if not folder.summary_file.exists() else "cannot be read"
        raise ValueError(f"{folder.summary_file} {state}")
    missing = [name for name in FIGURES if summary.get(name) is None]
    if missing:
        raise ValueError(
            f"{folder.summary_file} lacks {', '.join(missing)}: another version wrote it, or a diverged run"
        )
    checkpoint = folder.latest() or ""
    later = checkpoint.removeprefix("step_").isdecimal() and int(checkpoint.removeprefix("step_")) > summary["steps"]
    seconds = summary.get("wall_seconds")  # older runs know the time of their last session only
    excess = summary["validation_cross_entropy"] - summary["unigram_cross_entropy"]
    found = summary.get("validation_cross_entropy_of") or {}  # older runs lack it
    of_domains = ", ".join(f"{name} {nats:.3f}" for name, nats in found.items())
    found = summary.get("validation_score_of") or {}  # null: no number
    scores = ", ".join(f"{name} {score:.1f}" for name, score in found.items() if score is not None)
    best = ", ".join(
        f"{name} {entry.value:.4g} at step {entry.step:,}" for name, entry in read_best(run_dir).entries.items()
    )
    side = "above" if excess > 0 else "below"
    return "\n".join(
        (
            "",
            f"Trained {counted(summary['steps'], 'step')} on {counted(summary['tokens'], 'token')} with "
            f"{counted(summary['world_size'], 'rank')}, expert-parallel size {summary['expert_parallel_size']}"
            f"{'' if seconds is None else f', in {seconds:.0f} s'}.",
            f"Validation cross-entropy {summary['validation_cross_entropy']:.3f} nats per target, {abs(excess):.3f} "
            f"{side} the unigram baseline ({summary['unigram_cross_entropy']:.3f}).",
            *([f"Of each domain: {of_domains}."] if of_domains else []),
            *([f"Scores of the answers, %: {scores}."] if scores else []),
            *([f"Best checkpoints: {best}."] if best else []),
            f"  run         {run_dir}/  (config.yaml, metrics.jsonl, summary.json)",
            f"  checkpoint  {folder.checkpoints / checkpoint}/"
            f"{'  (later than these figures: the run went on, and has not finished)' if later else ''}",
            "Next, in this folder:",
            "  source .venv/bin/activate",
            f"  tensorboard --logdir {shlex.quote(str(run_dir.parent))}",
            f"  {folder.continue_command(summary)}",
            f'  python fill.py {shlex.quote(str(run_dir))} "Paris is the <extra_id_0> of <extra_id_1>."',
            f"  python convert.py export {shlex.join([str(run_dir), '--output', f'exported/{folder.path.name}'])}",
        )
    )
