"""What the commands of the studies have in common: their options, their runs' checks, and how they go on."""

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from studies.runner.execute import alone_in, run_locally, submit
from studies.runner.launcher import Local, Slurm
from studies.runner.runs import Result, Run, make_run
from training.config.checks import check_layout
from training.config.errors import ConfigError
from training.config.run import RunConfig, load_config

DEFAULT_STEPS = 250
EXIT_USER_ERROR = 2


def make_parser(description: str, out: str) -> argparse.ArgumentParser:
    """The options that every study has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--config", default="configs/tiny.yaml", help="configuration that all runs start from (%(default)s)")
    add("--steps", type=int, default=DEFAULT_STEPS, help="updates of each run; a decay ends there (%(default)s)")
    add("--out", type=Path, default=Path(out), help="folder of the runs and of the outcome (%(default)s)")
    add(
        "--launcher", choices=("local", "slurm"), default="local", help="this machine, or one job per run (%(default)s)"
    )
    add("--dry-run", action="store_true", help="print every command line and job script; run and write nothing")
    local = parser.add_argument_group("--launcher local").add_argument
    local("--ranks", type=int, default=1, help="processes of a run, one per GPU where there are GPUs (%(default)s)")
    local("--jobs", type=int, help="runs at a time (as many as the GPUs are enough for; 2 on a CPU)")
    local("--minutes", type=float, help="start no further run after this time; repeat the command to go on")
    slurm = parser.add_argument_group("--launcher slurm").add_argument
    slurm("--nodes", type=int, default=1, help="nodes of a run (%(default)s)")
    slurm("--gpus-per-node", type=int, default=8, help="GPUs, and processes, of a node (%(default)s)")
    slurm("--time", help="time limit of a job, such as 2-00:00:00")
    slurm("--sbatch", action="append", default=[], metavar="OPTION", help="a further option, as --sbatch=--partition=x")
    add("overrides", nargs="*", metavar="key=value", help="overrides for all runs, such as training.precision=fp32")
    return parser


def positive(arguments: argparse.Namespace, *names: str) -> None:
    """Check that these options are 1 or more. Raises ConfigError."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be 1 or more")


def make_launcher(arguments: argparse.Namespace) -> Local | Slurm:
    """The launcher that the options ask for. Raises ConfigError."""
    positive(arguments, "steps", "ranks", "jobs", "nodes", "gpus_per_node")
    if arguments.launcher == "slurm":
        return Slurm(arguments.nodes, arguments.gpus_per_node, arguments.time, tuple(arguments.sbatch))
    gpus, ranks = torch.cuda.device_count(), arguments.ranks
    jobs = arguments.jobs or (max(1, gpus // ranks) if gpus else 2)
    if gpus and jobs * ranks > gpus:
        raise ConfigError(f"--jobs {jobs} x --ranks {ranks} need more than the {gpus} GPUs of this machine: lower one")
    return Local(ranks, jobs, gpus)


def common_arguments(arguments: argparse.Namespace, launcher: Local | Slurm) -> tuple[list[str], RunConfig]:
    """The ``key=value`` arguments of all runs, and the configuration that they give. Raises ConfigError."""
    ranks = launcher.ranks if isinstance(launcher, Local) else launcher.nodes * launcher.gpus_per_node
    own = [f"training.steps={arguments.steps}", "optimizer.decay_steps=null"]  # a decay ends with the run
    config = load_config(arguments.config, [*own, *arguments.overrides])
    size = config.parallel.expert_parallel_size
    if ranks % size:
        own.append(f"parallel.expert_parallel_size={math.gcd(size, ranks)}")
    together = [*own, *arguments.overrides]
    config = load_config(arguments.config, together)
    check_layout(config, ranks)
    return together, config


def carry_out(
    arguments: argparse.Namespace,
    launcher: Local | Slurm,
    common: Sequence[str],
    plan: Sequence[tuple[str, int, dict[str, Any]]],
) -> list[tuple[Run, Result]] | None:
    """Make the runs of ``plan`` (name, seed, overrides), run those that are not finished, and read what came out.

    Returns:
        None after ``--dry-run``.

    Raises:
        ConfigError: a run's configuration is not valid, or the folder holds runs of another study.
    """
    runs = [make_run(arguments.config, common, name, seed, arguments.out, overrides) for name, seed, overrides in plan]
    if arguments.dry_run:
        print(launcher.describe(runs))
        return None
    for run in runs:
        run.check_same()
    with alone_in(arguments.out):
        if isinstance(launcher, Slurm):
            submit(runs, launcher)
        else:
            run_locally(runs, launcher, arguments.minutes)
        return [(run, run.result()) for run in runs]


def exit_code(arguments: argparse.Namespace, results: Iterable[Result]) -> int:
    """1 if a run failed: it is not finished, though there was no limit of time and nobody else trains it; else 0."""
    failed = arguments.launcher == "local" and any(result.status == "unfinished" for result in results)
    return int(failed and arguments.minutes is None)


def refuse(error: ValueError) -> int:
    """Print a user's mistake on one line; the exit code."""
    print(f"error: {error}", file=sys.stderr)
    return EXIT_USER_ERROR
