"""Run a function in real processes that form a gloo group, as the launcher would start them."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.ports import free_port
from tests.support.forks import TIMEOUT_SECONDS, fork


def run_ranks(function: Callable[..., Any], world_size: int, tmp_path: Path, *args: Any) -> list[Any]:
    """Return what ``function(*args)`` returns on every rank, in order, after ``initialize_distributed``.

    Raises:
        AssertionError: with the traceback of the first rank that failed.
    """
    out = tmp_path / f"ranks-{os.urandom(4).hex()}"
    out.mkdir()
    ranks = [
        fork(_enter, function, out / f"{rank}.pt", args, environment=environment)
        for rank, environment in enumerate(rank_environments(world_size))
    ]
    try:
        for rank in ranks:
            rank.join(TIMEOUT_SECONDS)
        codes = [rank.exitcode for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert codes == [0] * world_size, f"exit codes {codes}"
    results = [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(world_size)]
    failed = [result["error"] for result in results if "error" in result]
    assert not failed, failed[0]
    return [result["value"] for result in results]


def rank_environments(world_size: int) -> list[dict[str, str]]:
    """Return what the launcher tells each rank of one host."""
    port = free_port()
    return [
        {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }
        for rank in range(world_size)
    ]  # fmt: skip


def _enter(function: Callable[..., Any], out: Path, args: tuple[Any, ...]) -> None:
    from training.run.distributed import initialize_distributed
    from training.run.process import Process

    try:
        initialize_distributed(Process.from_environment(), timeout_seconds=60)
        result = {"value": function(*args)}
    except Exception:
        result = {"error": traceback.format_exc()}
    torch.save(result, out)
    if "error" in result:
        os._exit(0)  # the other rank may wait for this one in a collective: its time-out ends it
    import deepspeed.comm as dist

    dist.destroy_process_group()
