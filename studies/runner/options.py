"""The command line that all studies share: options, checks, execution of a plan, exit code."""

import argparse
import difflib
import math
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from common.arguments import Parser
from common.exit_codes import USER_ERROR
from common.paths import check_can_write, path_argument, path_text_argument
from common.text import counted
from studies.runner.execute import alone_in, run_locally, submit
from studies.runner.follow_up import NOTHING, FollowUp
from studies.runner.launcher import Local, Slurm
from studies.runner.runs import Result, Run, make_run
from training.checkpoint.initial.fitting import load_run_config
from training.config.checks import check_layout
from training.config.errors import ConfigError
from training.config.run import RunConfig

DEFAULT_STEPS = 250


def make_parser(name: str, description: str, out: str, steps: int | None = DEFAULT_STEPS) -> Parser:
    """Make a parser with the options that every study has.

    Args:
        name: of the study's module.
        description: text of ``--help``.
        out: default of ``--out``.
        steps: default of ``--steps``; None: the study's own.
    """
    parser = Parser(
        prog=f"python -m {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--config",
        type=path_text_argument,
        default="configs/tiny.yaml",
        help="base configuration of all runs (%(default)s)",
    )
    default = "those of --config" if steps is None else steps
    add("--steps", type=int, default=steps, help=f"steps of each run; a decay ends there ({default})")
    add("--out", type=path_argument, default=Path(out), help="folder for the runs and the results (%(default)s)")
    add(
        "--launcher", choices=("local", "slurm"), default="local", help="this machine, or one job per run (%(default)s)"
    )
    add("--dry-run", action="store_true", help="print all command lines or job scripts; run and write nothing")
    local = parser.add_argument_group("--launcher local").add_argument
    local("--ranks", type=int, default=1, help="processes per run, one per GPU if there are GPUs (%(default)s)")
    local("--jobs", type=int, help="runs at a time (as many as fit on the GPUs; 2 on a CPU)")
    local("--minutes", type=float, help="start no further run after this time; repeat the command to continue")
    slurm = parser.add_argument_group("--launcher slurm").add_argument
    slurm("--nodes", type=int, default=1, help="nodes per run (%(default)s)")
    slurm("--gpus-per-node", type=int, default=8, help="GPUs, and processes, per node (%(default)s)")
    slurm("--time", help="time limit of a job, e.g. 2-00:00:00")
    slurm("--sbatch", action="append", default=[], metavar="OPTION", help="sbatch option, e.g. --sbatch=--partition=x")
    add("overrides", nargs="*", metavar="key=value", help="overrides for all runs, e.g. training.precision=fp32")
    return parser


def positive(arguments: argparse.Namespace, *names: str) -> None:
    """Check that the named options are 1 or greater.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be 1 or greater")


def check_variants(option: str, given: Iterable[str], known: Collection[str]) -> None:
    """Check names of variants.

    Args:
        option: that lists them, such as ``--only``.
        given: on the command line.
        known: the study's.

    Raises:
        ConfigError: one is not known, or is an override that the list has swallowed.
    """
    for name in given:
        if "=" in name:
            raise ConfigError(f"{name} follows {option} and is read as a variant: put key=value before {option}")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            fix = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
            raise ConfigError(f"{option} {name}: no such variant; {fix}")


def make_launcher(arguments: argparse.Namespace) -> Local | Slurm:
    """Make the launcher that the options describe.

    Raises:
        ConfigError: an option is out of range, a mistake in the configuration or ``--out``, or the runs need more GPUs
            than there are.
    """
    positive(arguments, "steps", "ranks", "jobs", "nodes", "gpus_per_node")
    if arguments.launcher == "slurm":
        return Slurm(arguments.nodes, arguments.gpus_per_node, arguments.time, tuple(arguments.sbatch))
    # the configuration first: torch takes seconds to import
    check_can_write(arguments.out, "--out")
    load_run_config(arguments.config, arguments.overrides)
    import torch

    gpus, ranks = torch.cuda.device_count(), arguments.ranks
    jobs = arguments.jobs or (max(1, gpus // ranks) if gpus else 2)
    if gpus and jobs * ranks > gpus:
        raise ConfigError(
            f"--jobs {jobs} x --ranks {ranks} need more than the {counted(gpus, 'GPU')} of this machine: lower one"
        )
    return Local(ranks, jobs, gpus)


def common_arguments(arguments: argparse.Namespace, launcher: Local | Slurm) -> tuple[list[str], RunConfig]:
    """Return the ``key=value`` arguments of all runs, and the resulting configuration.

    Raises:
        ConfigError: the configuration is not valid, or does not fit the launcher's number of ranks.
    """
    ranks = launcher.ranks if isinstance(launcher, Local) else launcher.nodes * launcher.gpus_per_node
    own = [f"training.steps={arguments.steps}", "optimizer.decay_steps=null"]  # a decay ends with the run
    config = load_run_config(arguments.config, [*own, *arguments.overrides])
    size = config.parallel.expert_parallel_size
    if ranks % size:
        own.append(f"parallel.expert_parallel_size={math.gcd(size, ranks)}")
    together = [*own, *arguments.overrides]
    config = load_run_config(arguments.config, together)
    check_layout(config, ranks)
    return together, config


def execute_plan(
    arguments: argparse.Namespace,
    launcher: Local | Slurm,
    common: Sequence[str],
    plan: Sequence[tuple[str, int, dict[str, Any]]],
    follow_up: FollowUp = NOTHING,
) -> list[tuple[Run, Result]] | None:
    """Execute the unfinished runs of a plan and read the results of all.

    Args:
        arguments: options of ``make_parser``.
        launcher: see ``make_launcher``.
        common: ``key=value`` arguments of all runs.
        plan: variant, seed and overrides of each run.
        follow_up: what is done with each run that is trained.

    Returns:
        Each run with its result, in the order of the plan; None after ``--dry-run``.

    Raises:
        ConfigError: a run's configuration is not valid, or the folder holds runs of another study.
    """
    runs = [make_run(arguments.config, common, name, seed, arguments.out, overrides) for name, seed, overrides in plan]
    if arguments.dry_run:
        print(launcher.describe(runs, follow_up))
        return None
    for run in runs:
        run.check_same()
    with alone_in(arguments.out):
        if isinstance(launcher, Slurm):
            submit(runs, launcher, follow_up)
        else:
            run_locally(runs, launcher, arguments.minutes, follow_up)
        return [(run, run.result()) for run in runs]


def exit_code(arguments: argparse.Namespace, results: Iterable[Result]) -> int:
    """Return 1 if a local run failed, i.e. is unfinished although there was no time limit; else 0."""
    failed = arguments.launcher == "local" and any(result.status == "unfinished" for result in results)
    return int(failed and arguments.minutes is None)


def report_user_error(error: ValueError) -> int:
    """Print a user's mistake on one line; return the exit code."""
    print(f"error: {error}", file=sys.stderr)
    return USER_ERROR
