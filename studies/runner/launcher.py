"""How runs are started: on this machine by the deepspeed launcher, or on a cluster as Slurm jobs."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from studies.runner.runs import Run


@dataclass(frozen=True)
class Local:
    """``deepspeed --num_gpus N train.py …``, several runs at a time.

    Args:
        ranks: processes of a run.
        jobs: runs at a time.
        gpus: of this machine; 0: on the CPU, whose cores the jobs share.
    """

    ranks: int
    jobs: int
    gpus: int

    def command(self, run: Run, slot: int, port: int) -> list[str]:
        """The command line of a run.

        Args:
            run: what to start.
            slot: which of the jobs at a time it is, from 0; each has its own GPUs.
            port: for the ranks to find each other.
        """
        place = ["--num_gpus", str(self.ranks)]
        if self.gpus:
            first = slot * self.ranks
            place = ["--include", f"localhost:{','.join(str(first + rank) for rank in range(self.ranks))}"]
        deepspeed = Path(sys.executable).with_name("deepspeed")
        program = str(deepspeed) if deepspeed.exists() else "deepspeed"
        start = [program, *place, "--master_port", str(port), "--quiet", "train.py"]
        return [*start, *train_arguments(run, run.can_resume())]

    def environment(self) -> dict[str, str]:
        """What is set beside this process's environment; the cores are shared out unless it says how many threads."""
        if self.gpus:
            return {}
        threads = str(max(1, len(os.sched_getaffinity(0)) // (self.jobs * self.ranks)))
        threads = os.environ.get("OMP_NUM_THREADS", threads)
        return {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": threads}

    def describe(self, runs: list[Run]) -> str:
        """Every command line, for ``--dry-run``; the port is chosen when a run starts."""
        settings = [f"{key}={shlex.quote(value)}" for key, value in self.environment().items()]
        return "\n\n".join(
            f"# {run.name} > {shlex.quote(str(run.log))}\n"
            + " ".join([*settings, shlex.join(self.command(run, index % self.jobs, 29500))])
            for index, run in enumerate(runs)
        )


@dataclass(frozen=True)
class Slurm:
    """One job per run, torchrun on every node.

    Args:
        nodes: of a run.
        gpus_per_node: one process each.
        time: limit of a job, as ``sbatch --time`` takes it; None: the partition's.
        options: further lines for ``#SBATCH``, such as ``--partition=gpu``.
    """

    nodes: int
    gpus_per_node: int
    time: str | None
    options: tuple[str, ...]

    def script(self, run: Run) -> str:
        """The job script of a run.

        The job goes on from the run's newest checkpoint, so that it may be requeued and submitted again; two jobs of
        the same run wait for each other (``singleton``), and the later one finds nothing to do.
        """
        study = run.dir.parent.parent
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
        return "\n".join(
            [
                "#!/usr/bin/env bash",
                *(f"#SBATCH {shlex.quote(option)}" for option in options),
                "set -euo pipefail",
                "[ ! -f .venv/bin/activate ] || source .venv/bin/activate",
                f"run={shlex.quote(str(run.dir))}",
                '[ ! -f "$run/summary.json" ] || exit 0',
                "resume=()",
                'if [ -f "$run/checkpoints/latest" ]; then resume=(--resume); else rm -rf -- "$run"; fi',
                'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
                f'{shlex.join(torchrun)} --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:29500" \\',
                f'  {train} "${{resume[@]}}"',
                "",
            ]
        )

    def script_path(self, run: Run) -> Path:
        """Where the job script is written."""
        return run.log.parent.parent / "jobs" / f"{run.name}.sbatch"

    def command(self, run: Run) -> list[str]:
        """What submits the job."""
        return ["sbatch", str(self.script_path(run))]

    def describe(self, runs: list[Run]) -> str:
        """Every job script and the command that submits it, for ``--dry-run``."""
        return "\n".join(
            f"# {self.script_path(run)}\n{self.script(run)}\n{shlex.join(self.command(run))}\n" for run in runs
        )


def train_arguments(run: Run, resume: bool) -> list[str]:
    """What follows ``train.py``."""
    return ["--config", run.config_file, *run.overrides, *(["--resume"] if resume else [])]
