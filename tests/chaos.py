"""Kill random processes of a run at random moments: restarted, it must equal a run without a kill, bit for bit.

python -m tests.chaos --trials 30 [--seed 0] [--first 0] [--work FOLDER]

A trial is `launch/run_until_done.sh` with the deepspeed launcher and two expert-parallel ranks under ZeRO 1. Compared
are all rows of metrics but times, and the digests of the last checkpoint's tensors, bit for bit. Run it in parts with
--first and the same --work, whose run without a kill is then reused.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

from common.program import print_anything
from tests.support.corpus import write_corpus
from tests.support.launch import rows, train
from tests.support.processes import PATIENCE_SECONDS, Started, deepspeed_command
from tests.support.small import TWO_BLOCKS, small_config
from training.checkpoint.store.manifest import read_manifest
from training.config.run import RunConfig
from training.monitoring.columns import MEASURED
from training.run.folder import RunFolder

STEPS, SAVE_EVERY = 24, 3
VICTIMS = ("rank 0", "rank 1", "launcher", "deepspeed")
MOMENTS = ("step", "save", "publish")
LAST_FILES = ("index.json", "trainer_state.json", "manifest.json")  # written by rank 0 before it publishes
LONGEST_WAIT_SECONDS = 2.0  # about as long as the steps of a run take

Command = Callable[[RunConfig, Path], list[str]]


class Trial(NamedTuple):
    """One kill and its result."""

    number: int
    victim: str
    moment: str
    hit: str  # where the run was
    seconds: float
    equal: bool
    note: str


def make_config(work: Path, name: str) -> RunConfig:
    """Return the configuration of a run on the corpus of ``work``; dropout, jitter and sampled experts are on."""
    section = work / "corpus.json"
    if not section.exists():
        section.write_text(json.dumps(write_corpus(work / "corpus")))
    return small_config(
        work,
        data=json.loads(section.read_text()),
        parallel={"expert_parallel_size": 2},
        optimizer={"min_dim_size_to_factor": 16},
        model=TWO_BLOCKS | {"dropout_rate": 0.1, "router_jitter": 0.01, "second_threshold": 0.9},
        guard={"spike_threshold": 50.0, "spike_window": 8},
        training={
            "name": name, "steps": STEPS, "log_every": 1, "eval_every": 6, "eval_examples": 16,
            "save_every": SAVE_EVERY, "keep_checkpoints": 2, "keep_every": 12, "timeout_seconds": 60.0,
        },
    )  # fmt: skip


def begin(config: RunConfig, log: Path, command: Command) -> Started:
    """Start ``launch/run_until_done.sh deepspeed … train.py``, or another command of the launcher's."""
    script = ["bash", "launch/run_until_done.sh", "--backoff", "0"]
    return Started([*script, *command(config, log.parent)], config.run_dir, log)


def outcome(run_dir: Path) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return what two runs must agree on: rows without times, and digests of the last checkpoint's tensors."""
    kept = [row for row in rows(run_dir) if row.get("split") != "checkpoint"]
    metrics = [{key: value for key, value in row.items() if not MEASURED.fullmatch(key)} for row in kept]
    last = run_dir / "checkpoints" / (run_dir / "checkpoints" / "latest").read_text()
    return metrics, [record for record in read_manifest(last) if record.name.endswith(".safetensors")]


def attack(run: Started, moment: str, rng: random.Random, victim: str) -> str:
    """Wait for the moment and kill; return where the run was."""
    run.wait_for_rows(1)
    process = run.find(victim)
    checkpoints = run.run_dir / "checkpoints"
    if moment == "step":
        time.sleep(rng.uniform(0, LONGEST_WAIT_SECONDS))
        process.kill()
        return f"step {max(run.steps())}"
    # Not the first ones, which may have passed.
    step = SAVE_EVERY * rng.randrange(2, STEPS // SAVE_EVERY)
    partial, published = checkpoints / f".step_{step:08d}.partial", checkpoints / f"step_{step:08d}"
    awaited = partial if moment == "save" else partial / rng.choice(LAST_FILES)
    while not awaited.exists() and not published.exists() and process.is_running():
        time.sleep(0.0005)  # a save takes milliseconds; the ranks need the core
    if moment == "save":
        time.sleep(rng.uniform(0, 0.02))
    process.kill()
    return f"step {step}, {'partial' if partial.exists() else 'published' if published.exists() else 'aside'}"


def run_trial(work: Path, number: int, seed: int, expected: Any, command: Command) -> Trial:
    """Run once, with one kill."""
    rng = random.Random(1000 * seed + number)
    victim, moment = rng.choice(VICTIMS), MOMENTS[number % len(MOMENTS)]
    config, began = make_config(work, f"trial-{seed}-{number}"), time.monotonic()
    run = begin(config, work / f"{config.training.name}.log", command)
    hit, note, equal = "never", "", False
    try:
        hit = attack(run, moment, rng, victim)
        code = run.process.wait(PATIENCE_SECONDS)
        equal = code == 0 and outcome(config.run_dir) == expected
        restarts = run.log.read_text(errors="replace").count("run_until_done: exit code")
        note = f"exit code {code}, restarts {restarts}"
    except (psutil.NoSuchProcess, ProcessLookupError, subprocess.TimeoutExpired) as error:
        note = f"{type(error).__name__}: {error}"
    finally:
        run.end()
    return Trial(number, victim, moment, hit, time.monotonic() - began, equal, note)


def uninterrupted(work: Path) -> Any:
    """Return the outcome of a run without a kill, made once; its ranks need no launcher."""
    config = make_config(work, "whole")
    if not RunFolder(config.run_dir).is_done(config.training.steps):
        file = work / "whole.yaml"
        file.write_text(yaml.safe_dump(config.model_dump()))
        result = train(file, ranks=2)
        if result.returncode:
            raise RuntimeError(result.stderr[-3000:])
    return outcome(config.run_dir)


def run_trials(work: Path, trials: range, seed: int, command: Command = deepspeed_command) -> list[Trial]:
    """Run trials one after another, and print each."""
    expected = uninterrupted(work)
    results = []
    for number in trials:
        results.append(run_trial(work, number, seed, expected, command))
        print(format_row(results[-1]), flush=True)
    return results


def format_row(trial: Trial) -> str:
    """Return a line of the table."""
    return (
        f"{trial.number:>5}  {trial.victim:<9}  {trial.moment:<7}  {trial.hit:<20}  {trial.seconds:>5.1f} s  "
        f"{'equal' if trial.equal else 'DIFFERENT':<9}  {trial.note}"
    )


def main() -> None:
    """Print a table; exit code 1 unless all trials gave the uninterrupted run."""
    print_anything()
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder to keep; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        print(f"{'trial':>5}  {'killed':<9}  {'moment':<7}  {'the run was at':<20}  {'time':>7}  result")
        results = run_trials(work, range(arguments.first, arguments.first + arguments.trials), arguments.seed)
    equal = sum(trial.equal for trial in results)
    print(f"{equal} of {len(results)} equal the uninterrupted run bit for bit")
    sys.exit(equal != len(results))


if __name__ == "__main__":
    main()
