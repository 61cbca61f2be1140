"""Prints what a finished run achieved and where its files are: ``python -m training.report runs/tiny``."""

import argparse
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from common.arguments import Parser
from common.exit_codes import USER_ERROR
from common.paths import path_argument
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
            f"  checkpoint  {folder.checkpoints / checkpoint}/"
            f"{'  (later than these figures: the run went on, and has not finished)' if later else ''}",
            "Next, in this folder:",
            "  source .venv/bin/activate",
            f"  tensorboard --logdir {shlex.quote(str(run_dir.parent))}",
            f"  {_continue_command(folder, summary)}",
            f'  python fill.py {shlex.quote(str(run_dir))} "Paris is the <extra_id_0> of <extra_id_1>."',
            f"  python convert.py export {shlex.join([str(run_dir), '--output', f'exported/{folder.path.name}'])}",
        )
    )


def _continue_command(folder: RunFolder, summary: dict[str, Any]) -> str:
    """The command that trains on, as far again as the run has come."""
    config, steps, ranks = folder.saved_config(), summary["steps"], summary["world_size"]
    optimizer = config.get("optimizer", {})
    if optimizer.get("schedule") in ("linear", "cosine"):
        end = optimizer.get("decay_steps") or config.get("training", {}).get("steps", steps)
        if end <= steps:  # the learning rate is at its floor: a new schedule, on the weights
            name = f"{folder.path.resolve().name}-continued"
            return folder.train_command(ranks, f"training.init_from={folder.path}", name=name)
        return folder.train_command(ranks, "--resume", f"training.steps={end}", f"optimizer.decay_steps={end}")
    return folder.train_command(ranks, "--resume", f"training.steps={2 * steps}")


if __name__ == "__main__":
    print_anything()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` may close the pipe before the last line
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=path_argument, help="run folder, such as runs/tiny")
    run_dir = parser.parse_args().run
    try:
        text = describe(run_dir)
    except ValueError as error:
        print(f"error: {run_dir} holds no finished run: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    print(text)
