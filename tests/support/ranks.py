"""Run a function in real processes that form a gloo group, as the launcher would start them."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from common.ports import free_port


def run_ranks(function: Callable[..., Any], world_size: int, tmp_path: Path, *args: Any) -> list[Any]:
    """``function(*args)`` on every rank, after ``initialize_distributed``; what the ranks return, in order.

    Raises:
        AssertionError: with the traceback of the first rank that failed.
    """
    out = tmp_path / f"ranks-{os.urandom(4).hex()}"
    out.mkdir()
    port = free_port()
    mp.start_processes(_entry, (function, world_size, port, out, args), nprocs=world_size, start_method="spawn")
    results = [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(world_size)]
    failed = [result["error"] for result in results if "error" in result]
    assert not failed, failed[0]
    return [result["value"] for result in results]


def _entry(rank: int, function: Callable[..., Any], world_size: int, port: int, out: Path, args: tuple[Any]) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    from training.run.process import Process, initialize_distributed

    try:
        initialize_distributed(Process.from_environment(), timeout_seconds=60)
        result = {"value": function(*args)}
    except Exception:
        result = {"error": traceback.format_exc()}
    torch.save(result, out / f"{rank}.pt")
    if "error" in result:
        os._exit(0)  # the other rank may wait for this one in a collective: its time-out ends it
    import deepspeed.comm as dist

    dist.destroy_process_group()
