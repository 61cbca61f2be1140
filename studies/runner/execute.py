"""Executes the unfinished runs of a study, several at a time, and reports progress."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from common.files import acquire_lock
from common.ports import free_port
from common.text import counted
from studies.runner.follow_up import NOTHING, FollowUp
from studies.runner.launcher import Local, Slurm
from studies.runner.runs import Run
from training.config.errors import ConfigError

POLL_SECONDS = 0.5
GRACE_SECONDS = 60  # more than the 30 s after which the deepspeed launcher kills its ranks


@dataclass
class Job:
    """A program of a run: its training, or what follows it."""

    run: Run
    slot: int
    process: subprocess.Popen[bytes]
    started: float
    training: bool


def run_locally(runs: list[Run], launcher: Local, minutes: float | None, follow_up: FollowUp = NOTHING) -> None:
    """Train the unfinished runs; report a run that fails, and continue with the next.

    Args:
        runs: the study's runs, in the order in which to start them.
        launcher: how to start a run, and how many at a time.
        minutes: start no further run after this time; None: no limit.
        follow_up: what is done with a run that is trained, in its slot.
    """
    waiting = deque(run for run in runs if not follow_up.is_done(run))
    total, done = len(runs), len(runs) - len(waiting)
    if done:
        print(f"already finished: {done} of {counted(total, 'run')}", flush=True)
    if waiting:
        together = min(launcher.jobs, len(waiting))
        print(
            f"training {len(waiting)} of {counted(total, 'run')}, {together} at a time, with "
            f"{counted(launcher.ranks, 'rank')} each; logs in {runs[0].log.parent}",
            flush=True,
        )
    began = time.monotonic()
    seconds: list[float] = []
    jobs: list[Job] = []
    with _ended_with_us(jobs):
        while waiting or jobs:
            in_time = minutes is None or time.monotonic() - began < 60 * minutes
            while waiting and in_time and len(jobs) < launcher.jobs:
                run = waiting.popleft()
                if follow_up.is_done(run):  # by now, as by a study on another machine
                    done += 1
                    print(f"[{done}/{total}] {run.name} was finished by another study", flush=True)
                    continue
                slot = min(set(range(launcher.jobs)) - {job.slot for job in jobs})
                job = _start(run, slot, launcher, follow_up)
                if job is not None:
                    jobs.append(job)
                    print(f"started {run.name}, logging to {run.log}", flush=True)
                else:
                    follow_up.finish(run)
                    done += 1
            if not jobs:
                break
            time.sleep(POLL_SECONDS)
            for job in [job for job in jobs if job.process.poll() is not None]:
                jobs.remove(job)
                trained = job.training and job.run.result().status != "unfinished"
                following = _start(job.run, job.slot, launcher, follow_up) if trained else None
                if following is not None:
                    jobs.append(replace(following, started=job.started))
                    continue
                taken = time.monotonic() - job.started
                outcome = _describe(job, taken, follow_up)
                done, seconds = done + 1, [*seconds, taken]
                left = sum(seconds) / len(seconds) * (total - done) / launcher.jobs
                print(f"[{done}/{total}] {outcome}; {left / 60:.0f} min left", flush=True)
    if waiting:
        print(f"{counted(len(waiting), 'run')} left: repeat the command to continue", flush=True)


def submit(runs: list[Run], launcher: Slurm, follow_up: FollowUp = NOTHING) -> None:
    """Submit a Slurm job for every unfinished run, and finish those whose jobs have ended.

    Raises:
        ConfigError: ``sbatch`` is not installed, or rejects a job.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError("--launcher slurm: sbatch is not installed here; submit from a login node, or add --dry-run")
    waiting = []
    for run in (run for run in runs if not follow_up.is_done(run)):
        if run.result().status != "unfinished" and follow_up.program(run) is None:
            follow_up.finish(run)
        else:
            waiting.append(run)
    for run in waiting:
        script = launcher.script_path(run)
        script.parent.mkdir(parents=True, exist_ok=True)
        run.log.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(launcher.script(run, follow_up.program(run, planned=True)), encoding="utf-8")
        answer = subprocess.run(launcher.command(run), capture_output=True, text=True)  # noqa: S603
        if answer.returncode:
            raise ConfigError(f"sbatch rejected {script}: {' '.join(answer.stderr.split())}")
        print(f"{run.name}: {answer.stdout.strip()}", flush=True)
    if waiting:
        print("repeat the command when the jobs have ended, to write the table", flush=True)


@contextlib.contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Lock the study's folder, so that no run is trained twice at the same time.

    Raises:
        ConfigError: another process holds the lock.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            held = acquire_lock(file)
        except OSError as error:
            raise ConfigError(f"--out {out}: its file system has no locks ({error}): set another --out") from None
        if not held:
            raise ConfigError(
                f"--out {out}: another study, or a run that it started, is using this folder: wait for it to end, or "
                "set another --out"
            )
        os.set_inheritable(file.fileno(), True)
        yield


def _start(run: Run, slot: int, launcher: Local, follow_up: FollowUp) -> Job | None:
    """Start what is next for a run, its training or what follows it; None if nothing is."""
    training = run.result().status == "unfinished"
    if training:
        run.clear_the_way()
        command = launcher.command(run, slot, free_port())
    else:
        program = follow_up.program(run)
        if program is None:
            return None
        command = [sys.executable, *program]
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with run.log.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603
            command,
            env=os.environ | launcher.environment() | ({} if training else launcher.device(slot)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            close_fds=False,  # the run inherits the folder's lock, and keeps it if this process is killed
            start_new_session=True,
        )
    return Job(run, slot, process, time.monotonic(), training)


def _describe(job: Job, seconds: float, follow_up: FollowUp) -> str:
    """Finish a run whose last program has ended, and say how it went."""
    run, result = job.run, job.run.result()
    if result.status == "unfinished" or (not job.training and job.process.returncode):
        return f"{run.name} failed with exit code {job.process.returncode}: {last_words(run.log)}"
    follow_up.finish(run)
    if result.status == "diverged":
        return f"{run.name} diverged at step {result.verdict.diverged_at} ({result.verdict.reason}), {seconds:.0f} s"
    return f"{run.name} stable, quality {result.quality:.4f}, {seconds:.0f} s"


def last_words(log: Path) -> str:
    """Return the line of a log that says why the run ended: the last error, else the last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ") or "Error: " in line]
    return (errors or lines or ["its log is empty"])[-1][:300]


@contextlib.contextmanager
def _ended_with_us(jobs: list[Job]) -> Iterator[None]:
    """Stop the jobs when this process ends, also on SIGTERM; their checkpoints stay."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for job in jobs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.process.pid, signal.SIGTERM)
        for job in jobs:
            try:
                job.process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(job.process.pid, signal.SIGKILL)
