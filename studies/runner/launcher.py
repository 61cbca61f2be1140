"""Launchers of runs: the deepspeed launcher on this machine, or Slurm jobs on a cluster."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from studies.runner.follow_up import NOTHING, FollowUp
from studies.runner.runs import Run


@dataclass(frozen=True)
class Local:
    """``deepspeed --num_gpus N train.py …``, several runs at a time.

    Args:
        ranks: processes per run.
        jobs: runs at a time.
        gpus: GPUs of this machine; 0: the jobs share the cores of the CPU.
    """

    ranks: int
    jobs: int
    gpus: int

    def command(self, run: Run, slot: int, port: int) -> list[str]:
        """Return the command line of a run.

        Args:
            run: the run to start, or to resume if it has a checkpoint.
            slot: index among the concurrent jobs, from 0; each slot has its own GPUs.
            port: TCP port of the rendezvous.
        """
        devices = ["--num_gpus", str(self.ranks)]
        if self.gpus:
            first = slot * self.ranks
            devices = ["--include", f"localhost:{','.join(str(first + rank) for rank in range(self.ranks))}"]
        deepspeed = Path(sys.executable).with_name("deepspeed")
        program = str(deepspeed) if deepspeed.exists() else "deepspeed"
        start = [program, *devices, "--master_port", str(port), "--quiet", "train.py"]
        return [*start, *train_arguments(run, run.can_resume())]

    def environment(self) -> dict[str, str]:
        """Return the variables to add to this process's environment; on a CPU jobs share its cores equally.

        ``OMP_NUM_THREADS`` is kept if it is set.
        """
        if self.gpus:
            return {}
        threads = str(max(1, len(os.sched_getaffinity(0)) // (self.jobs * self.ranks)))
        threads = os.environ.get("OMP_NUM_THREADS", threads)
        return {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": threads}

    def device(self, slot: int) -> dict[str, str]:
        """Return the variables that give a program of one process the first GPU of a slot."""
        return {"CUDA_VISIBLE_DEVICES": str(slot * self.ranks)} if self.gpus else {}

    def describe(self, runs: list[Run], follow_up: FollowUp = NOTHING) -> str:
        """Format all command lines, for ``--dry-run``; the real port is chosen when a run starts."""
        settings = [f"{key}={shlex.quote(value)}" for key, value in self.environment().items()]
        blocks = []
        for index, run in enumerate(runs):
            programs = [self.command(run, index % self.jobs, 29500)]
            program = follow_up.program(run, planned=True)
            programs += [] if program is None else [["python", *program]]
            lines = [" ".join([*settings, shlex.join(words)]) for words in programs]
            blocks.append("\n".join([f"# {run.name} > {shlex.quote(str(run.log))}", *lines]))
        return "\n\n".join(blocks)


@dataclass(frozen=True)
class Slurm:
    """One job per run, torchrun on every node.

    Args:
        nodes: nodes per run.
        gpus_per_node: GPUs per node, with one process each.
        time: time limit of a job in the format of ``sbatch --time``; None: the partition's default.
        options: further ``#SBATCH`` options, e.g. ``--partition=gpu``.
    """

    nodes: int
    gpus_per_node: int
    time: str | None
    options: tuple[str, ...]

    def script(self, run: Run, program: Sequence[str] | None = None) -> str:
        """Return the job script of a run: its training and, on one GPU, the program of Python that follows it.

        The job resumes from the run's newest checkpoint, so it may be requeued or submitted again. Two jobs of one run
        execute one after the other (``singleton``), and a job of a finished run exits at once.
        """
        study, folder = run.dir.parent.parent, run.folder
        options = [
            f"--job-name={study.name}-{run.name}",
            f"--nodes={self.nodes}",
            "--ntasks-per-node=1",
            f"--gpus-per-node={self.gpus_per_node}",
            f"--output={str(run.log).replace('%', '%%')}",
            "--open-mode=append",
            "--requeue",
            "--dependency=singleton",
            *([f"--time={self.time}"] if self.time else []),
            *self.options,
        ]
        torchrun = [
            "srun", "torchrun", "--nnodes", str(self.nodes), "--nproc-per-node", str(self.gpus_per_node),
            "--rdzv-backend", "c10d",
        ]  # fmt: skip
        train = shlex.join(["train.py", *train_arguments(run, resume=False)])
        alone = ["srun", "--nodes=1", "--ntasks=1", "--gpus-per-task=1", "python"]
        return "\n".join(
            [
                "#!/usr/bin/env bash",
                *(f"#SBATCH {shlex.quote(option)}" for option in options),
                "set -euo pipefail",
                "[ ! -f .venv/bin/activate ] || source .venv/bin/activate",
                f"run={quote(folder.path)} summary={quote(folder.summary_file)} latest={quote(folder.latest_file)}",
                'if [ ! -f "$summary" ]; then',
                "  resume=()",
                '  if [ -f "$latest" ]; then resume=(--resume); else rm -rf -- "$run"; fi',
                '  head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
                f'  {shlex.join(torchrun)} --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:29500" \\',
                f'    {train} "${{resume[@]}}"',
                "fi",
                *([] if program is None else [shlex.join([*alone, *program])]),
                "",
            ]
        )

    def script_path(self, run: Run) -> Path:
        """Return the path of the job script."""
        return run.log.parent.parent / "jobs" / f"{run.name}.sbatch"

    def command(self, run: Run) -> list[str]:
        """Return the command line that submits the job."""
        return ["sbatch", str(self.script_path(run))]

    def describe(self, runs: list[Run], follow_up: FollowUp = NOTHING) -> str:
        """Format all job scripts and the commands that submit them, for ``--dry-run``."""
        return "\n".join(
            f"# {self.script_path(run)}\n{self.script(run, follow_up.program(run, planned=True))}\n"
            f"{shlex.join(self.command(run))}\n"
            for run in runs
        )


def quote(path: Path) -> str:
    """Return a path as a word of a shell script."""
    return shlex.quote(str(path))


def train_arguments(run: Run, resume: bool) -> list[str]:
    """Return the arguments of ``train.py``."""
    return ["--config", run.config_file, *run.overrides, *(["--resume"] if resume else [])]
