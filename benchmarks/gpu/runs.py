"""Step 6: whole runs of ``train.py`` on this card, all at once, and one that is killed and resumed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu.results import Report
from benchmarks.gpu.setting import Setting
from common.project import ROOT
from training.config.training import TrainingConfig
from training.monitoring.columns import LOSS, MEASURED, SKIPPED_STEPS, STEP, TOKENS_PER_SECOND, training_rows
from training.run.folder import RunFolder

KILLED, REFERENCE, AGAIN = "killed", "zero1-bf16_autocast", "again"
SAME_PRECISION, ANY_PRECISION = 1e-2, 5e-2  # of the last loss


class Run(NamedTuple):
    """A run of tiny, by what differs from ``configs/tiny.yaml``."""

    name: str
    zero_stage: int
    precision: str
    overrides: tuple[str, ...] = ()


def plan(setting: Setting) -> list[Run]:
    """Return the runs: every ZeRO stage, every precision, the first again, the one to be killed, both deterministic."""
    pair = [Run(REFERENCE, 1, "bf16_autocast"), Run(KILLED, 1, "bf16_autocast")]
    if setting.toy:
        return pair
    runs = [
        *pair,
        Run("zero0-bf16", 0, "bf16", ("training.gradient_accumulate_dtype=bf16",)),  # all that stage 0 can do
        *(Run(f"zero{z}-{p}", z, p) for z, p in ((2, "bf16_autocast"), (3, "bf16"), (1, "fp32"))),
    ]
    if "deterministic" in TrainingConfig.model_fields:
        exact = ("training.deterministic=true",)
        runs += [Run(f"{name}-deterministic", 1, "bf16_autocast", exact) for name in (REFERENCE, AGAIN, KILLED)]
    return runs


def start_process(command: list[str], log: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a process whose output is added to ``log``."""
    with log.open("ab") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env=environment)  # noqa: S603


class Started:
    """A run that has been started.

    Args:
        run: which.
        setting: where.
    """

    def __init__(self, run: Run, setting: Setting):
        self.run, self.setting = run, setting
        self.folder = RunFolder(setting.scratch / "runs" / run.name)
        self.log = setting.scratch / f"{run.name}.log"
        self.began = time.monotonic()
        self.seconds: float | None = None
        self.process = self._start()
        self.kill_at = f"step_{self.save_every:08d}" if run.name.startswith(KILLED) else None
        self.killed_after: int | None = None

    @property
    def save_every(self) -> int:
        """Steps between checkpoints."""
        return self.setting.pick(20, 4)

    def _start(self, *flags: str) -> subprocess.Popen[bytes]:
        data, toy = self.setting.data, self.setting.toy
        values = {
            "data.train_files": data / "train" / "*.json.gz",
            "data.validation_files": data / "validation" / "*.json.gz",
            "data.vocabulary": data / "vocabulary",
            "parallel.expert_parallel_size": 1,
            "training.output_dir": self.folder.path.parent,
            "training.name": self.run.name,
            "training.steps": self.setting.pick(60, 8),
            "training.log_every": 1,
            "training.eval_every": 1000,
            "training.save_every": self.save_every,
            "training.precision": self.run.precision,
            "training.deepspeed_config": ROOT / "ds_configs" / f"zero{self.run.zero_stage}.json",
        }
        if toy:
            values |= {"data.inputs_length": 64, "data.num_streams": 4}
            values |= {"training.global_batch_size": 4, "training.micro_batch_size": 2}
        values |= {"training.eval_examples": 64 if not toy else 4}
        command = [sys.executable, "train.py", "--config", "configs/tiny.yaml", *flags]
        command += [f"{key}={value}" for key, value in values.items()] + list(self.run.overrides)
        ours = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        # The worker has joined a group of its own: its ranks and ports are not those of a run.
        theirs = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
        environment = {key: value for key, value in os.environ.items() if key not in theirs} | ours
        return start_process(command, self.log, environment)

    def poll(self) -> bool:
        """Return whether the run has ended; kill the one to be killed after its first checkpoint, and resume it."""
        if self.kill_at is not None and self.folder.latest() == self.kill_at and self.process.poll() is None:
            self.kill_at = None
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            rows = training_rows(self.folder.rows())
            self.killed_after = int(rows[-1][STEP]) if rows else 0
            self.process = self._start("--resume")
        ended = self.process.poll() is not None
        if ended and self.seconds is None:
            self.seconds = time.monotonic() - self.began
        return ended

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of training, without times."""
        return [
            {key: value for key, value in row.items() if not MEASURED.fullmatch(key)}
            for row in training_rows(self.folder.rows())
        ]


def check_runs(setting: Setting, report: Report) -> None:
    """Train all at once; every run must end well, learn, and agree with the others."""
    started = {run.name: Started(run, setting) for run in plan(setting)}
    try:
        while sum(run.poll() for run in started.values()) < len(started):  # every one is looked at
            if report.left() < 5:
                raise TimeoutError("runs still going: " + ", ".join(n for n, run in started.items() if not run.poll()))
            time.sleep(0.02)
    finally:
        for run in started.values():
            run.process.kill()
            run.process.wait()
        for name, run in started.items():
            with report.part(name):
                describe(name, run, report)
    with report.part("agreement"):
        compare_losses(started, report)
    for suffix in ("", "-deterministic"):
        for other in (AGAIN, KILLED):
            if other + suffix in started and REFERENCE + suffix in started:
                with report.part(f"{other}{suffix} against {REFERENCE}{suffix}"):
                    compare_rows(started[REFERENCE + suffix], started[other + suffix], report)


def describe(name: str, run: Started, report: Report) -> None:
    """Record how a run went. Raises RuntimeError with the end of its log if it failed."""
    rows = training_rows(run.folder.rows())
    if run.process.returncode != 0:
        tail = run.log.read_text(encoding="utf-8", errors="replace")[-2500:]
        raise RuntimeError(f"code {run.process.returncode} after {len(rows)} rows: {tail}")
    losses = [row[LOSS] for row in rows]
    speed = sorted(row[TOKENS_PER_SECOND] for row in rows)[len(rows) // 2]
    skipped = rows[-1].get(SKIPPED_STEPS, 0)
    learned = all(loss is not None and loss == loss for loss in losses) and losses[-1] < losses[0] and not skipped
    found = {"first": losses[0], "last": losses[-1], "rows": len(rows), "tokens/s": speed, "s": run.seconds}
    report.value(f"run {name}", found)
    report.check(f"{name}: loss falls, no step skipped", found, "last < first", learned)
    if name.startswith(KILLED):
        report.value(f"{name} after step", run.killed_after)
        report.check(f"{name}: was killed and resumed", run.killed_after, "a step", run.killed_after is not None)


def compare_losses(started: dict[str, Started], report: Report) -> None:
    """Compare the loss at the last common step with that of the reference, within a precision and across."""
    losses = {name: {row[STEP]: row[LOSS] for row in run.rows()} for name, run in started.items()}
    losses = {name: found for name, found in losses.items() if found}
    step = min(max(found) for found in losses.values())
    for name, found in losses.items():
        same = started[name].run.precision == started[REFERENCE].run.precision
        difference = abs(found[step] / losses[REFERENCE][step] - 1)
        report.below(
            f"{name}: loss of step {step} against {REFERENCE}", difference, SAME_PRECISION if same else ANY_PRECISION
        )


def compare_rows(first: Started, second: Started, report: Report) -> None:
    """Record the first step at which two runs differ, and by how much their losses ever do."""
    title = f"{second.run.name} against {first.run.name}"
    pairs = list(zip(first.rows(), second.rows(), strict=True))
    unequal = [a[STEP] for a, b in pairs if repr(a) != repr(b)]
    largest = max(abs(a[LOSS] / b[LOSS] - 1) for a, b in pairs)
    report.value(
        title, {"rows": len(pairs), "first difference at step": unequal[0] if unequal else None, "of loss": largest}
    )
    # Without training.deterministic kernels add in any order, and 60 steps amplify it: nothing to hold the run to.
    if not first.setting.cuda or first.run.overrides:
        report.check(f"{title}: rows that differ", len(unequal), "0", not unequal)
