"""The options of studies whose results are lines of a file and a section of a document."""

import argparse
import os
from pathlib import Path
from typing import Any

from common.arguments import Parser
from common.paths import path_argument
from studies.results.machine import processor_name
from studies.runner.launcher import Local, Slurm


def add_options(parser: Parser, rows: Path, document: Path) -> Any:
    """Add ``--only``, ``--seeds``, ``--rows``, ``--report`` and ``--document``.

    Args:
        parser: of ``make_parser``.
        rows: default of ``--rows``.
        document: default of ``--document``.

    Returns:
        The group of options of which one at most may be given, ``--report`` among them.
    """
    add = parser.add_argument
    add("--only", nargs="+", default=[], metavar="NAME", help="variants to run, of those that --dry-run names (all)")
    add("--seeds", type=seeds_argument, default=(0,), metavar="0,1", help="seeds, each after the one before (0)")
    add("--rows", type=path_argument, default=rows, help="file of results, read and appended to (%(default)s)")
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--report", action="store_true", help="train nothing: write tables and picture into --document from the rows"
    )
    add("--document", type=path_argument, default=document, help="document that --report writes into (%(default)s)")
    return way


def seeds_argument(text: str) -> tuple[int, ...]:
    """Parse ``0,1,2``. Raises ArgumentTypeError."""
    try:
        seeds = tuple(dict.fromkeys(int(word) for word in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError("write a list of seeds, such as 0,1") from None
    if min(seeds) < 0:
        raise argparse.ArgumentTypeError("a seed is 0 or greater")
    return seeds


def one_thread_without_gpus() -> None:
    """Let runs have one thread each where the user has hidden the GPUs."""
    if "CUDA_VISIBLE_DEVICES" in os.environ and not os.environ["CUDA_VISIBLE_DEVICES"]:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def ranks_of(launcher: Local | Slurm) -> int:
    """Return the number of processes of a run."""
    return launcher.ranks if isinstance(launcher, Local) else launcher.nodes * launcher.gpus_per_node


def surroundings(launcher: Local | Slurm) -> dict[str, Any]:
    """Return what a row says about how its run was started."""
    ranks = ranks_of(launcher)
    if isinstance(launcher, Slurm):
        return {"ranks": ranks, "jobs": 1, "threads": None, "device": None}
    device = processor_name()
    if launcher.gpus:
        import torch

        device = torch.cuda.get_device_name()
    threads = launcher.environment().get("OMP_NUM_THREADS")
    return {"ranks": ranks, "jobs": launcher.jobs, "threads": threads and int(threads), "device": device}
